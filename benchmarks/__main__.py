"""Runs every benchmark, prints the table and keeps it in docs/benchmarks.md."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table
from runed_proto.runed.v1.runed_pb2 import EmbedRequest, EmbedResponse

import runed
from benchmarks.raw import RawServer
from runed import Client, Status
from runed.processes import resident_bytes
from tests.support import RunningDaemon, short_home, wait_until
from tools.engine import programs_folder

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"
REPORT = ROOT / "docs" / "benchmarks.md"

TEXT = "How do several agents share one embedding model?"
CALLS = 300
ENDURANCE_CALLS = 20_000
ENDURANCE_WARM_UP = 4_000
ENDURANCE_CONCURRENCY = 64
STARTS = 7
WAKES = 7

DEPENDENCIES = "aiohttp, connectrpc.server, google.protobuf, h2, hypercorn.asyncio.run, msgspec, numpy, psutil, structlog"
"""What the daemon imports of others before it listens; the time of this import is the yardstick of its start."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was measured.
        runed: The measurement of runed, with its unit.
        raw: The measurement of the yardstick.
        difference: How they compare.
        bar: What the project wants.
        passed: Whether it is reached.
    """

    name: str
    runed: str
    raw: str
    difference: str
    bar: str
    passed: bool


def median_ms(seconds: list[float]) -> float:
    """Give the median in milliseconds."""
    return statistics.median(seconds) * 1000


def measure_single_text(daemon: RunningDaemon, raw: RawServer) -> Row:
    """One short text at a time: the sync client against the raw server, in turn, so that the machine's drift hits both."""
    ours: list[float] = []
    theirs: list[float] = []
    with runed.connect(socket_path=daemon.socket) as client, raw.connect() as connection:
        for number in range(CALLS + 20):
            text = f"{TEXT} {number}"
            began = time.perf_counter()
            client.embed(text)
            middle = time.perf_counter()
            raw.embed(connection, text)
            ended = time.perf_counter()
            if number >= 20:
                ours.append(middle - began)
                theirs.append(ended - middle)
    extra = median_ms(ours) - median_ms(theirs)
    return Row(
        "one short text, sync client, p50",
        f"{median_ms(ours):.2f} ms",
        f"{median_ms(theirs):.2f} ms",
        f"+{extra:.2f} ms (x {median_ms(ours) / median_ms(theirs):.2f})",
        "at most 4 ms over raw",
        extra <= 4,
    )


def measure_endurance(daemon: RunningDaemon) -> Row:
    """Many gRPC calls at a time on one connection, for as long as it takes a leak or a protocol error to show."""
    started = time.perf_counter()
    errors, growth = asyncio.run(_endure(daemon))
    rate = ENDURANCE_CALLS / (time.perf_counter() - started)
    return Row(
        f"{ENDURANCE_CALLS:,} gRPC calls, {ENDURANCE_CONCURRENCY} at a time, one connection",
        f"{errors} errors, RSS {growth:+.1%} after the first {ENDURANCE_WARM_UP:,}, {rate:.0f} calls/s",
        "-",
        "-",
        "no error, less than 3 %",
        errors == 0 and growth < 0.03,
    )


async def _endure(daemon: RunningDaemon) -> tuple[int, float]:
    """Give the number of calls that failed and the growth of the daemon's memory after the warm-up."""
    numbers = iter(range(ENDURANCE_CALLS))
    errors = 0
    warm = 0

    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        embed = channel.unary_unary(
            "/runed.v1.RunedService/Embed",
            request_serializer=EmbedRequest.SerializeToString,
            response_deserializer=EmbedResponse.FromString,
        )

        async def call_on() -> None:
            nonlocal errors, warm
            for number in numbers:
                try:
                    response = await embed(EmbedRequest(text=f"call {number}"), timeout=60)
                    errors += len(response.vector) == 0
                except grpc.aio.AioRpcError:
                    errors += 1
                if number == ENDURANCE_WARM_UP:
                    warm = resident_bytes(daemon.process.pid)

        await asyncio.gather(*(call_on() for _ in range(ENDURANCE_CONCURRENCY)))
    return errors, resident_bytes(daemon.process.pid) / warm - 1


def measure_wake(daemon: RunningDaemon, client: Client, raw: RawServer) -> Row:
    """The first text after the engine was suspended, against the raw server's start plus the same text."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(WAKES):
        daemon.wait_for("STATUS_IDLE")
        began = time.perf_counter()
        client.embed(f"{TEXT} {number}")
        ours.append(time.perf_counter() - began)
        wait_until(lambda: client.health().status is Status.IDLE, what="idleness")
        start = raw.start()
        with raw.connect() as connection:
            began = time.perf_counter()
            raw.embed(connection, f"{TEXT} {number}")
            theirs.append(start + time.perf_counter() - began)
        raw.stop()
    extra = median_ms(ours) - median_ms(theirs)
    return Row(
        "wake from idle to the first vector, p50",
        f"{median_ms(ours):.0f} ms",
        f"{median_ms(theirs):.0f} ms",
        f"{extra:+.0f} ms (x {median_ms(ours) / median_ms(theirs):.2f})",
        "at most 150 ms over raw",
        extra <= 150,
    )


def measure_idle_memory(daemon: RunningDaemon) -> Row:
    """What a suspended daemon holds."""
    health = daemon.wait_for("STATUS_IDLE")
    children = subprocess.run(
        ["ps", "--no-headers", "--ppid", str(daemon.process.pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert health.get("enginePid", "0") == "0"
    mebibytes = resident_bytes(daemon.process.pid) / 2**20
    return Row(
        "suspended daemon",
        f"{mebibytes:.1f} MiB RSS, {len(children.splitlines())} children",
        "-",
        "-",
        "at most 85 MiB, no child",
        mebibytes <= 85 and not children,
    )


def measure_start() -> Row:
    """From `runed` to a listening socket, against only importing what it imports of others."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {DEPENDENCIES}"], check=True)
        theirs.append(time.perf_counter() - began)
        home = short_home()
        began = time.perf_counter()
        daemon = RunningDaemon(home, {"RUNED_LLAMA_SERVER": "/bin/false", "RUNED_MODEL": str(MODEL)})
        while not daemon.socket.exists():
            time.sleep(0.002)
        ours.append(time.perf_counter() - began)
        daemon.stop()
        daemon.remove_home()
    ratio = statistics.median(ours) / statistics.median(theirs)
    return Row(
        "from `runed` to a listening socket, p50",
        f"{median_ms(ours):.0f} ms",
        f"{median_ms(theirs):.0f} ms (imports alone)",
        f"x {ratio:.2f}",
        "at most x 2",
        ratio <= 2,
    )


def run() -> tuple[list[Row], list[str]]:
    """Run all benchmarks and give the rows and the engine's command line."""
    engine = programs_folder() / "llama-server"
    rows = [measure_start()]
    home = short_home()
    daemon = RunningDaemon(home, {"RUNED_LLAMA_SERVER": str(engine), "RUNED_MODEL": str(MODEL), "RUNED_IDLE_TIMEOUT": "1500ms"})
    try:
        pid = int(daemon.wait_for("STATUS_OK")["enginePid"])
        argv = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        raw = RawServer(argv, home / "raw.sock")
        raw.start()
        try:
            rows.append(measure_single_text(daemon, raw))
            rows.append(measure_endurance(daemon))
        finally:
            raw.stop()
        with runed.connect(socket_path=daemon.socket) as client:
            rows.append(measure_wake(daemon, client, raw))
        rows.append(measure_idle_memory(daemon))
    finally:
        daemon.stop()
        daemon.remove_home()
    return rows, argv


def print_table(rows: list[Row]) -> None:
    """Print the rows for people."""
    table = Table(title="runed against raw llama-server")
    for header in ("what", "runed", "raw", "difference", "bar", ""):
        table.add_column(header)
    for row in rows:
        table.add_row(row.name, row.runed, row.raw, row.difference, row.bar, "ok" if row.passed else "MISSED")
    Console(width=150).print(table)


def write_report(rows: list[Row], argv: list[str]) -> None:
    """Keep the rows with all that is needed to judge them."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    flags = shlex.join(
        [
            Path(part).name if part.startswith("/") and number != argv.index("--host") + 1 else part
            for number, part in enumerate(argv)
        ]
    ).replace(argv[argv.index("--host") + 1], "<socket>")
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`: runed and raw `llama-server` with the same flags, in turn in one run, so that ratios hold",
        "where absolute times do not. Raw is spoken to by Python's `http.client` on a kept connection.",
        "",
        f"- Date: {dt.datetime.now(tz=dt.UTC).date()}",
        f"- Machine: {os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "- Model: all-MiniLM-L6-v2, f16",
        f"- Engine: `{flags}`",
        f"- Samples: {CALLS} calls, {STARTS} starts, {WAKES} wakes; each figure is a median",
        "",
        "| what | runed | raw | difference | bar | reached |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.runed} | {row.raw} | {row.difference} | {row.bar} | {'yes' if row.passed else 'no'} |"
            for row in rows
        ),
        "",
    ]
    REPORT.write_text("\n".join(lines))


def main() -> int:
    """Measure, print, keep; 1 if a bar was missed."""
    rows, argv = run()
    print_table(rows)
    write_report(rows, argv)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
