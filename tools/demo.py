"""The demo of runed, on this machine alone: download, verify, start, embed, rank by meaning, stop.

The demo plays two parts. As the network, it serves the document root of `tools.docroot` on loopback. As a user, it has a
`RUNED_HOME` that is empty at first, and calls `runed.connect()`. The home is kept: a second run downloads nothing, which is the
everyday case.
"""

# ruff: noqa: E402 # the imports below take half a second, in which Ctrl-C must not show a stack trace
from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import runed
from runed.cli.progress import ProgressDisplay
from runed.cli.waiting import PHASES
from runed.errors import RunedError
from runed.processes import ProcessIdentity, identify, is_alive, resident_bytes
from tools import step
from tools.docroot import DOCUMENT_ROOT, MANIFEST, ROOT, Site, serve

HOME = ROOT / "build" / "demo-home"

QUERY = "How do I get my money back?"
SENTENCES = (
    "Refunds are paid within five working days.",
    "Return the shoes in their box if they do not fit.",
    "The shop is open from nine to five.",
    "Our stock broker recommends bonds.",
    "The cat sleeps on the warm windowsill.",
)

FURTHER_TEXTS = 20

IDLE_TIMEOUT = "2s"

IDLE_SECONDS = 30.0
"""Seconds that the suspension of the engine may take on a slow machine."""

EXIT_SECONDS = 20.0
"""Seconds that the daemon and its engine may take to end."""

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demo.

    Returns:
        The exit code: 0 only if everything worked and no process is left.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # keeps the order with the progress on standard error, if both go to a log
    with serve(DOCUMENT_ROOT) as site:
        _be_a_fresh_user(site.url + MANIFEST)
        try:
            _tell_the_story(site)
        except RunedError as error:
            console.print(f"[red]✗[/] {error.message}")
            return 1
        finally:
            # After a failure or Ctrl-C, the daemon still runs. Otherwise this does nothing.
            subprocess.run(["runed", "stop"], check=False, capture_output=True, timeout=60)
    return 0


def _be_a_fresh_user(manifest: str) -> None:
    """Remove the caller's settings of runed from the environment, which the daemon inherits, and set those of the demo."""
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        del os.environ[name]
    os.environ["RUNED_HOME"] = str(HOME)
    os.environ["RUNED_MANIFEST"] = manifest
    os.environ["RUNED_ENGINE"] = "cpu"  # a comparison, or a hint at another engine, would be no part of the demo
    os.environ["RUNED_IDLE_TIMEOUT"] = IDLE_TIMEOUT
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _tell_the_story(site: Site) -> None:
    _headline("A place to download from", "in real life this is the official release of llama.cpp and of the model")
    for path in sorted(DOCUMENT_ROOT.iterdir()):
        console.print(f"   {site.url}{path.name}  [dim]{_size(path.stat().st_size)}[/]")

    _headline("runed.connect() and client.embed()", f"no daemon runs for {HOME.relative_to(ROOT)}, so the client starts one")
    started = time.monotonic()
    with ProgressDisplay(keep=True) as display, _connect(display) as client:
        vector = client.embed("hello world")
        display.close()
        _done(f"{_what_it_took(site)}, and embedded the first text: {time.monotonic() - started:.1f} s")
        info = client.info()
        console.print(f"   model {info.model_name}, {info.vector_dim} dimensions, {info.model_identity}")
        values = "  ".join(f"{value:+.4f}" for value in vector[:6])
        console.print(f"   [cyan]{values}  …[/]  float32, length {np.linalg.norm(vector):.6f}")
        _done(f"{FURTHER_TEXTS} more texts, one at a time: {_median_seconds(client) * 1000:.1f} ms each (median)")

        _headline(f'Ranked by meaning: "{QUERY}"', "client.embed_batch(), then the cosine")
        _show_ranking(client)

        _headline("$ runed status", "what another process sees of the same daemon")
        status = _run_command("runed", "status")
        console.print(Text("\n".join(f"   {line}" for line in status.splitlines())))

        _headline("Left alone", f"it gives the memory back after RUNED_IDLE_TIMEOUT, which is 10m and here {IDLE_TIMEOUT}")
        _show_idling(client, display)

        _headline("$ runed stop", "the daemon finishes what it is doing, ends the engine and exits")
        health = client.health()
        processes = [found for pid in (health.pid, health.engine_pid) if (found := identify(pid))]
    with ProgressDisplay() as waiting:
        waiting.update("stopping the daemon")
        _run_command("runed", "stop")
        _wait_for_end(processes)
    _done(f"no process is left; engine and model stay in {HOME.relative_to(ROOT)} for the next run")


def _connect(display: ProgressDisplay) -> runed.Client:
    """Connect and start the daemon. Each message of a call that waits gets a bar of its own."""

    def show(health: runed.Health) -> None:
        if health.phase:
            display.update(health.message or PHASES[health.phase], health.bytes_done, health.bytes_total)

    display.update("starting the daemon")
    return runed.connect(on_progress=show)


def _what_it_took(site: Site) -> str:
    if set(site.requested) <= {MANIFEST}:
        return "everything is cached from an earlier run, nothing was downloaded; started the engine"
    return "downloaded and verified engine and model, started the engine"


def _median_seconds(client: runed.Client) -> float:
    """Embed further texts one at a time, and return the median of the times in seconds."""
    seconds = []
    for number in range(FURTHER_TEXTS):
        started = time.monotonic()
        client.embed(f"This is the short text with the number {number}.")
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def _show_ranking(client: runed.Client) -> None:
    vectors = client.embed_batch([QUERY, *SENTENCES])
    cosines = vectors[1:] @ vectors[0]
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for index in np.argsort(-cosines):
        bar = "█" * max(0, round(float(cosines[index]) * 20))
        table.add_row(f"   {cosines[index]:+.3f}", SENTENCES[index], f"[cyan]{bar}[/]")
    console.print(table)


def _show_idling(client: runed.Client, display: ProgressDisplay) -> None:
    """Wait until the engine is suspended, then wake it by embedding."""
    engine_memory = resident_bytes(client.health().engine_pid)
    deadline = time.monotonic() + IDLE_SECONDS
    with ProgressDisplay() as waiting:
        waiting.update("waiting until nobody has embedded for long enough")
        while client.health().status is not runed.Status.IDLE:
            if time.monotonic() > deadline:
                raise RunedError(f"the engine is not suspended after {IDLE_SECONDS:g} s")
            time.sleep(0.1)
    daemon_memory = resident_bytes(client.health().pid)
    _done(f"the engine's {_size(engine_memory)} are free; the daemon waits in {_size(daemon_memory)}")
    started = time.monotonic()
    client.embed("hello again")
    display.close()
    _done(f"the next embedding started the engine and had its vector in {(time.monotonic() - started) * 1000:.0f} ms")


def _wait_for_end(processes: list[ProcessIdentity]) -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    while alive := [process.pid for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            raise RunedError(f"still running after {EXIT_SECONDS:g} s: pid {', '.join(map(str, alive))}")
        time.sleep(0.05)


def _run_command(*argv: str) -> str:
    """Run a command as a user would, and return its output."""
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode != 0:
        raise RunedError(f"`{' '.join(argv)}` failed: {result.stderr.strip()}")
    return result.stdout.rstrip()


def _headline(title: str, explanation: str) -> None:
    console.print(f"\n[bold]{title}[/]  [dim]{explanation}[/]")


def _done(message: str) -> None:
    console.print(f"   [green]✓[/] {message}")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size > 100_000 else f"{size:,} bytes"


if __name__ == "__main__":
    step.quietly(main)
