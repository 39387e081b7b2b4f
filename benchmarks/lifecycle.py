"""The daemon's start, its waking up, and its memory while nobody embeds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import runed
from benchmarks.lab import Daemon, Lab
from benchmarks.results import Row, median_ms
from runed import Status
from runed.processes import resident_bytes
from tests.support import RunningDaemon, short_home, wait_until

RUNED = Path(sys.executable).with_name("runed")

STARTS = 7
RESTARTS = 11
WAKES = 7

DEPENDENCIES = "cachetools, connectrpc.request, google.protobuf, h11, h2, httptools, msgspec, numpy, prometheus_client, psutil"
"""Packages that the daemon imports before it answers. The time to import them alone is the yardstick of its start."""


def measure_start(lab: Lab) -> list[Row]:
    """Measure the time from `runed` to its first answer, against the time to import `DEPENDENCIES` alone."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {DEPENDENCIES}"], check=True)
        theirs.append(time.perf_counter() - began)
        home = short_home()
        began = time.perf_counter()
        daemon = RunningDaemon(home, {"RUNED_LLAMA_SERVER": "/bin/false", "RUNED_MODEL": str(lab.model.file)})
        while not daemon.socket.exists():
            time.sleep(0.002)
        with runed.connect(socket_path=daemon.socket) as client:
            client.health()
        ours.append(time.perf_counter() - began)
        daemon.stop()
        daemon.remove_home()
    ratio = statistics.median(ours) / statistics.median(theirs)
    return [
        Row(
            "from `runed` to its first answer, p50",
            f"{median_ms(ours):.0f} ms",
            f"{median_ms(theirs):.0f} ms (imports alone)",
            f"x {ratio:.2f}",
            "at most x 2",
            ratio <= 2,
        )
    ]


def measure_restart(lab: Lab) -> list[Row]:
    """Measure the time from the end of `runed stop` to a client's first vector, against that of a raw server and its start.

    Ours is the time of a program that has imported the client. It finds no daemon and starts one. The daemon imports, finds its
    files, starts the engine, checks it, and embeds the text. The raw time is that from the start of the same engine, with the
    same flags, to the vector of the same text.
    """
    ours: list[float] = []
    theirs: list[float] = []
    with Daemon(lab.model) as daemon, daemon.as_home():
        for text in lab.fresh_texts(RESTARTS):
            subprocess.run([RUNED, "stop"], check=True, capture_output=True)
            began = time.perf_counter()
            with runed.connect() as client:
                client.embed(text)
            ours.append(time.perf_counter() - began)
            subprocess.run([RUNED, "stop"], check=True, capture_output=True)
            theirs.append(_raw_start(lab, text))
    extra = median_ms(ours) - median_ms(theirs)
    return [
        Row(
            "from `runed stop` to the first vector, p50",
            f"{median_ms(ours):.0f} ms",
            f"{median_ms(theirs):.0f} ms",
            f"{extra:+.0f} ms (x {median_ms(ours) / median_ms(theirs):.2f})",
            "at most 250 ms over raw",
            extra <= 250,
        )
    ]


def measure_sleep(lab: Lab) -> list[Row]:
    """Measure the first text after a suspension against a raw server's start plus the same text, and measure the memory."""
    with Daemon(lab.model, RUNED_IDLE_TIMEOUT="1500ms") as daemon:
        return [_measure_wake(lab, daemon), _measure_idle_memory(daemon)]


def _measure_wake(lab: Lab, daemon: Daemon) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    with daemon.connect() as client:
        for text in lab.fresh_texts(WAKES):
            wait_until(lambda: client.health().status is Status.IDLE, what="idleness")
            began = time.perf_counter()
            client.embed(text)
            ours.append(time.perf_counter() - began)
            wait_until(lambda: client.health().status is Status.IDLE, what="idleness")
            theirs.append(_raw_start(lab, text))
    extra = median_ms(ours) - median_ms(theirs)
    return Row(
        "wake from idle to the first vector, p50",
        f"{median_ms(ours):.0f} ms",
        f"{median_ms(theirs):.0f} ms",
        f"{extra:+.0f} ms (x {median_ms(ours) / median_ms(theirs):.2f})",
        "at most 150 ms over raw",
        extra <= 150,
    )


def _raw_start(lab: Lab, text: str) -> float:
    """Return the seconds from the start of a raw server to its first vector."""
    raw = lab.raw_server()
    start = raw.start()
    try:
        with raw.connect() as connection:
            began = time.perf_counter()
            connection.embed(text)
            return start + time.perf_counter() - began
    finally:
        raw.stop()


def _measure_idle_memory(daemon: Daemon) -> Row:
    health = daemon.running.wait_for("STATUS_IDLE")
    pid = daemon.running.process.pid
    children = subprocess.run(
        ["ps", "--no-headers", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert health.get("enginePid", "0") == "0"
    mebibytes = resident_bytes(pid) / 2**20
    return Row(
        "suspended daemon",
        f"{mebibytes:.1f} MiB RSS, {len(children.splitlines())} children",
        "-",
        "-",
        "at most 85 MiB, no child",
        mebibytes <= 85 and not children,
    )
