"""`runed top` on terminals of all sizes, and without one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from runed.cli.top import _mean, _sums, sparkline
from tests.cli.support import SCRIPTS, Cli
from tests.support import wait_until

LEAVE_SCREEN = b"\x1b[?1049l"


class OnTerminal:
    """The command on a terminal of its own."""

    def __init__(self, cli: Cli, *, rows: int = 30, columns: int = 100, kind: str = "xterm") -> None:
        self.controller, self._terminal = pty.openpty()
        termios.tcsetwinsize(self._terminal, (rows, columns))
        self.before = termios.tcgetattr(self._terminal)
        self.screen = b""
        self.process = subprocess.Popen(
            [SCRIPTS / "runed", "top", "--interval", "0.2"],
            env=cli.environment_of_a_command() | {"TERM": kind, "LINES": "", "COLUMNS": ""},  # rich believes them first
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.controller)
        os.close(self._terminal)

    def read(self) -> bytes:
        while select.select([self.controller], [], [], 0)[0]:
            self.screen += os.read(self.controller, 65536)
        return self.screen

    def shows(self, text: bytes) -> None:
        wait_until(lambda: text in self.read(), what=f"{text!r} on the screen")

    def end(self) -> int:
        """Wait for the end; the terminal has to be as before."""
        wait_until(lambda: self.read() is not None and self.process.poll() is not None, what="the end of the command")
        self.read()
        assert LEAVE_SCREEN in self.screen
        assert termios.tcgetattr(self._terminal) == self.before
        assert self.screen.count(b"\x1b[?25h") >= 1, "the cursor is shown again"
        return int(self.process.returncode)


def test_it_shows_the_work_until_q(served: Cli) -> None:
    with OnTerminal(served) as top:
        top.shows(b"throughput")
        os.write(top.controller, b"x")
        assert served.run("embed", "to be seen").returncode == 0
        top.shows("▁".encode()[:2])
        os.write(top.controller, b"q")
        assert top.end() == 0
    for name in (b"queue", b"latency", b"lanes", b"requests", b"cache", b"model", b"clients", b"q leaves"):
        assert name in top.screen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_any_end_gives_the_terminal_back(served: Cli, number: signal.Signals, code: int) -> None:
    with OnTerminal(served) as top:
        top.shows(b"throughput")
        top.process.send_signal(number)
        assert top.end() == code


def test_the_death_of_the_daemon_ends_it(cli: Cli) -> None:
    assert cli.run("ensure").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    with OnTerminal(cli) as top:
        top.shows(b"throughput")
        os.kill(daemon.pid, signal.SIGKILL)
        assert top.end() == 3
    assert b"no daemon runs for" in top.screen


@pytest.mark.parametrize(("rows", "columns"), [(4, 20), (1, 5), (60, 300)])
def test_it_fits_into_terminals_of_all_sizes(served: Cli, rows: int, columns: int) -> None:
    with OnTerminal(served, rows=rows, columns=columns) as top:
        top.shows(b"runed"[:columns])
        time.sleep(0.5)  # some looks more
        os.write(top.controller, b"q")
        assert top.end() == 0
    frames = re.split(rb"\x1b\[H", top.screen)
    assert [frame for frame in frames[1:] if frame.count(b"\n") >= rows] == []


def test_without_a_terminal_it_prints_one_snapshot(served: Cli) -> None:
    done = served.run("top", "--interval", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("runed ")
    assert "\x1b" not in done.stdout
    assert "q leaves" not in done.stdout
    assert [line.split()[0] for line in lines if line.split()[0] in {"queue", "throughput", "latency", "clients"}] == [
        *("queue", "throughput", "latency", "clients")
    ]


def test_a_terminal_that_cannot_be_redrawn_gets_a_snapshot(served: Cli) -> None:
    with OnTerminal(served, kind="dumb") as top:
        top.shows(b"throughput")
        assert top.process.wait(timeout=60) == 0
        assert b"\x1b" not in top.read()


def test_a_line_of_json_for_each_look(served: Cli) -> None:
    with served.start("top", "--json", "--interval", "0.2") as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    keys = {"status", "queued_texts", "tokens_per_second", "texts_per_second", "latency_seconds", "memory_bytes", "clients"}
    keys.add("bulk_latency_seconds")
    assert keys < set(first)
    assert first["status"] == second["status"] == "OK"


def test_without_a_daemon_it_says_so(home: Path) -> None:
    done = Cli(home).run("top")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no daemon runs" in done.stderr
    assert list(home.iterdir()) == []


def test_a_sparkline_has_a_bar_for_each_value() -> None:
    assert sparkline([0, 1, 4, 8], 8) == " ▁▄█"
    assert sparkline([0.001, 8], 8) == "▁█"
    assert sparkline([0, 0], 0) == ""


def test_latency_is_that_of_what_was_counted_since_the_last_look() -> None:
    text = 'runed_batch_seconds_sum{lane="bulk"} 3.0\nruned_batch_seconds_count{lane="bulk"} 2.0\n'
    before = _sums(text)
    after = _sums(text.replace("3.0", "9.0").replace("2.0", "4.0") + text.replace("bulk", "interactive"))
    assert _mean(after, before, "runed_batch_seconds", "bulk") == (9 - 3) / (4 - 2)
    assert _mean(after, before, "runed_batch_seconds", "interactive") == 3 / 2
    assert _mean(before, before, "runed_batch_seconds", "bulk") == 0
