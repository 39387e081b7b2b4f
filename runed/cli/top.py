"""`runed top`: watch the daemon work. It never starts one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from runed.cli.boundary import ExitCode, complain
from runed.cli.home_alone import load_home
from runed.cli.options import seconds
from runed.cli.status import client_words, device_words, duration, megabytes, sleep_words, state_words
from runed.errors import DaemonUnavailableError, DeadlineExceededError, printable
from runed.lifecycle.asking import Asker, Health, Info, Model
from runed.lifecycle.presence import observe
from runed.paths import Paths
from runed.processes import resident_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

DESCRIPTION = """\
Watch the daemon work: its models, queues, throughput and latency, and the
programs that use it. `q` or Ctrl-C leaves. Never starts a daemon and never
wakes a suspended engine. Without a terminal, or on one that cannot be redrawn
(`TERM=dumb`), it prints one snapshot.
"""

EPILOG = """\
examples:
  runed top
  runed top --interval 5     look every five seconds
  runed top --once           one snapshot, after one interval
  runed top --json           for programs: a JSON object a line, until Ctrl-C

latency is the time from the arrival of a text to its vector: the mean wait of
the texts, and the mean time of the engine for a batch, since the last look.
Texts of large batches and jobs are bulk: they wait on purpose, and behind all
others.
exit codes are those of `runed status`.
"""

_KEPT = 240
"""Looks that the lines of history have at most."""

_BARS = "▁▂▃▄▅▆▇█"

_LABEL = 11
"""Columns of the names of the lines."""

_ANSWER_SECONDS = 5.0
"""Seconds that one look may take."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "--interval", type=seconds, default=1.0, metavar="SECONDS", help="time between two looks (default: 1; at least 0.2)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--once", action="store_true", help="print one snapshot")
    output.add_argument("--json", action="store_true", help="for programs: one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Watch the daemon until the user leaves."""
    paths = Paths(load_home().home)
    interval = max(0.2, arguments.interval)
    watch = _Watch()
    try:
        with Asker(paths, timeout=_ANSWER_SECONDS, each=True) as asker:
            watch.look(asker)
            if arguments.json:
                _print_lines(watch, asker, interval)
            elif arguments.once or not _can_redraw():
                time.sleep(interval)
                watch.look(asker)
                print("\n".join(line.plain.rstrip() for line in _screen(watch, 100)))
            else:
                _show(watch, asker, interval)
    except (DaemonUnavailableError, DeadlineExceededError):
        presence = observe(paths)
        complain(f"{presence}" if presence.pid else f"no daemon runs for {paths.home}; it starts with `runed ensure`")
        return ExitCode.FAILED if presence.pid else ExitCode.NOT_RUNNING
    return ExitCode.DEGRADED if watch.health.is_degraded else ExitCode.OK


def _can_redraw() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}


class _Watch:
    """The looks at the daemon, and what was counted between each two of them."""

    def __init__(self) -> None:
        self.info = Info()
        self.health = Health()
        self.daemon_memory = 0
        self.queued: deque[float] = deque(maxlen=_KEPT)
        self.tokens: deque[float] = deque(maxlen=_KEPT)
        self.texts: deque[float] = deque(maxlen=_KEPT)
        self.latency: deque[float] = deque(maxlen=_KEPT)
        self.bulk_latency: deque[float] = deque(maxlen=_KEPT)
        self._looked_at = 0.0
        self._sums: dict[tuple[str, str], float] = {}

    def look(self, asker: Asker) -> None:
        """Ask once. The first look counts nothing."""
        now = time.monotonic()
        health, sums = asker.health(detailed=True), _sums(asker.metrics())
        if health.model != self.health.model or not self.info.daemon_version:
            self.info = asker.info()
        if self._looked_at:
            passed, last = now - self._looked_at, self.health
            self.queued.append(health.interactive.queued_texts + health.bulk.queued_texts)
            self.tokens.append(max(0, health.total_tokens - last.total_tokens) / passed)
            self.texts.append(max(0, health.total_texts - last.total_texts) / passed)
            for lane, latency in (("interactive", self.latency), ("bulk", self.bulk_latency)):
                steps = ("runed_queue_wait_seconds", "runed_batch_seconds")
                latency.append(sum(_mean(sums, self._sums, step, lane) for step in steps))
        self._looked_at, self._sums, self.health = now, sums, health
        self.daemon_memory = resident_bytes(health.pid)

    def as_dict(self) -> dict[str, object]:
        """Return the last look for programs."""
        health = self.health
        return {
            "status": health.status,
            "queued_texts": self.queued[-1],
            "tokens_per_second": round(self.tokens[-1], 1),
            "texts_per_second": round(self.texts[-1], 1),
            "latency_seconds": round(self.latency[-1], 6),
            "bulk_latency_seconds": round(self.bulk_latency[-1], 6),
            "in_flight_requests": health.in_flight_requests,
            "clients": len(health.others()),
            "memory_bytes": sum(model.memory_bytes for model in health.models),
        }


def _sums(metrics: str) -> dict[tuple[str, str], float]:
    """Return the sums and counts of the histograms of each lane, by their names and lanes."""
    return {
        (match[1], match[2]): float(match[3])
        for match in re.finditer(r'^(\w+_seconds_(?:sum|count)){lane="(\w+)"} (\S+)$', metrics, re.MULTILINE)
    }


def _mean(sums: dict[tuple[str, str], float], before: dict[tuple[str, str], float], name: str, lane: str) -> float:
    total, count = (
        sums.get((f"{name}_{part}", lane), 0.0) - before.get((f"{name}_{part}", lane), 0.0) for part in ("sum", "count")
    )
    return total / count if count > 0 else 0.0


def _print_lines(watch: _Watch, asker: Asker, interval: float) -> None:
    while True:
        time.sleep(interval)
        watch.look(asker)
        print(json.dumps(watch.as_dict()), flush=True)


def _show(watch: _Watch, asker: Asker, interval: float) -> None:
    """Show the looks on the whole terminal until `q`. The terminal is as before at any end of this."""
    from rich.console import Console  # noqa: PLC0415 # 60 ms that a snapshot does not spend
    from rich.live import Live  # noqa: PLC0415 # as above

    console = Console(highlight=False)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_fitted(watch, console), refresh=True)
            if pressed(interval):
                return
            watch.look(asker)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Let keys be read one by one, without Enter and without an echo. Yield a function that waits for `q`."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout: float) -> bool:
        """Return whether `q` was pressed within so many seconds."""
        end = time.monotonic() + timeout
        while select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            if os.read(descriptor, 1) in {b"q", b"Q", b"\x04", b""}:
                return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _screen(watch: _Watch, width: int) -> list[Text]:
    """Return the lines for a terminal, the most important ones first."""
    from rich.text import Text  # noqa: PLC0415 # as above

    health = watch.health
    style = {"OK": "green", "IDLE": "green", "DEGRADED": "bold red"}.get(health.status, "yellow")
    head = Text.assemble(
        ("runed ", "bold"),
        f"{watch.info.daemon_version}  ",
        (health.status.lower().replace("_", " "), style),
        f"  up {duration(health.uptime_seconds)}  {megabytes(watch.daemon_memory)}",
    )
    lines = [head, *_histories(watch, width), *_totals(health)]
    rows = [*(("model", _model_line(model)) for model in health.models), ("clients", _clients(health))]
    lines += [Text.assemble((f"{name:<{_LABEL}}", "bold"), printable(value)) for name, value in rows]
    if health.message:
        lines.insert(1, Text(printable(health.message), style=style))
    return lines


def _fitted(watch: _Watch, console: Console) -> Text:
    """Return what fits on the terminal, with the way out as its last line."""
    from rich.text import Text  # noqa: PLC0415 # as above

    width, height = console.size
    lines = [*_screen(watch, width)[: max(1, height - 1)], Text("q leaves", style="dim")]
    return Text("\n", no_wrap=True, overflow="crop").join(lines[:height])


def _histories(watch: _Watch, width: int) -> Iterator[Text]:
    from rich.text import Text  # noqa: PLC0415 # as above

    for name, values, unit, style in (
        ("queue", watch.queued, "texts", "yellow"),
        ("throughput", watch.tokens, "tokens/s", "cyan"),
        ("", watch.texts, "texts/s", "cyan"),
        ("latency", [value * 1000 for value in watch.latency], "ms", "magenta"),
        ("", [value * 1000 for value in watch.bulk_latency], "ms, bulk", "magenta"),
    ):
        now, most = (values[-1], max(values)) if values else (0.0, 0.0)
        number = f"{now:>10,.1f} {unit:<9}" if name == "latency" else f"{now:>10,.0f} {unit:<9}"
        room = width - _LABEL - len(number) - 16
        bars = sparkline(list(values)[-room:], most) if room > 0 else ""
        top = f"  most {most:,.0f}" if room > 0 else ""
        yield Text.assemble((f"{name:<{_LABEL}}", "bold"), number, (bars, style), (top, "dim"))


def sparkline(values: Sequence[float], most: float) -> str:
    """Return a line of bars, one a value. A value above 0 has at least the lowest bar, and 0 has a space."""
    steps = len(_BARS) - 1
    return "".join(_BARS[min(steps, int(value / most * steps))] if value > 0 else " " for value in values) if most > 0 else ""


def _totals(health: Health) -> Iterator[Text]:
    from rich.text import Text  # noqa: PLC0415 # as above

    lanes = "; ".join(
        f"{name} {lane.queued_texts:,} waiting, p99 {lane.wait_p99_seconds * 1000:,.0f} ms"
        for name, lane in (("interactive", health.interactive), ("bulk", health.bulk))
    )
    refused = f"{health.refused_requests} refused by a full queue"
    requests = f"{health.in_flight_requests} in flight, {health.total_requests:,} in all, {refused}"
    saved = f"{health.cache_hits:,} of {health.total_texts:,} texts, {megabytes(health.cache_bytes)}"
    for name, value in (("lanes", lanes), ("requests", requests), ("cache", saved)):
        yield Text.assemble((f"{name:<{_LABEL}}", "bold"), value)


def _model_line(model: Model) -> str:
    memory = f", {megabytes(model.memory_bytes)}" if model.engine_pid else ""
    name = model.name or "default model"
    return f"{name}: {state_words(model)}, {device_words(model)}{memory}{sleep_words(model)}"


def _clients(health: Health) -> str:
    return ", ".join(map(client_words, health.others())) or "none but this command"
