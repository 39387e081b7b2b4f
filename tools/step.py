"""Runs one step of a set-up, and shows all the time that it goes on: `step.py TITLE COMMAND ...`.

On a terminal, one line has the title, the seconds and the last words of the command. In a log, each second is a dot, and each
ten seconds are a line with these words. The output of a command that fails is shown whole.

`step.py --show COMMAND ...` shows the output of the command as it comes, instead.

Ctrl-C reaches the command, too. What the command says about that is dropped: make tells the interruption in one line.

It needs no more than Python, since it also shows the making of the environment.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, NoReturn

_TERMINAL_PAUSE = 0.2
"""Seconds between two looks of a line on a terminal."""

_DOTS = 10
"""Dots of a line in a log, one a second."""

_WORDS = 90
"""Most characters of the last words of a command in a log."""

_END_SECONDS = 10.0
"""Seconds that the command may take to end after Ctrl-C."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and movements of the cursor."""


class _Line:
    """The line of a step on standard output.

    Args:
        title: The name of the step.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._live = sys.stdout.isatty()
        self._began = time.monotonic()
        self._dots = 0
        self.pause = _TERMINAL_PAUSE if self._live else 1.0
        self._write(title)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def show(self, words: str) -> None:
        """Show that the step goes on, and the last words of its command."""
        if self._live:
            line = f"{self._title} … {self._seconds:.0f} s  {words}"
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            return
        while self._dots < int(self._seconds):
            self._dots += 1
            self._write(" ." if self._dots % _DOTS else f" . {self._dots} s {words[:_WORDS]}".rstrip() + "\n")

    def end(self, mark: str = "") -> None:
        """End the line, so that something else can follow."""
        if self._live:
            self._write("\r\x1b[K" + (f"{mark} {self._title} ({self._seconds:.0f} s)\n" if mark else ""))
        else:
            self._write(f" {mark} {self._seconds:.0f} s\n" if mark else "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def run(title: str, argv: list[str]) -> int:
    """Run a command as a step.

    Args:
        title: The name of the step.
        argv: The command. Its output is shown only if it fails.

    Returns:
        The exit code of the command; 127 if there is no such command.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. The command has ended, and its output is dropped.
    """
    line = _Line(title)
    try:
        # The command stays in this process group, so that Ctrl-C reaches it.
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        line.end("✗")
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return 127
    except KeyboardInterrupt:  # the command may run already, and is interrupted, too
        line.end()
        raise
    assert process.stdout is not None
    try:
        output = _follow(process.stdout, line)
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        line.end()
        raise
    line.end("✗" if code else "✓")
    if code:
        sys.stderr.write(output.decode(errors="replace"))
    return code


def show(argv: list[str]) -> int:
    """Run a command, and show its output as it comes.

    Args:
        argv: The command. If standard output is a terminal, pytest uses colours.

    Returns:
        The exit code of the command.

    Raises:
        KeyboardInterrupt: As for `run`.
    """
    colours = {"PY_COLORS": "1"} if sys.stdout.isatty() else {}
    process = subprocess.Popen(argv, env=os.environ | colours, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        print(flush=True)
        raise


def _follow(pipe: IO[bytes], line: _Line) -> bytes:
    """Read the output of a command until its end, and show the line meanwhile."""
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        due = time.monotonic() + line.pause
        while True:
            if selector.select(max(due - time.monotonic(), 0.0)):
                if not (piece := os.read(pipe.fileno(), 1 << 16)):
                    return bytes(output)
                output += piece
            if time.monotonic() >= due:
                line.show(_last_words(output[-4096:].decode(errors="replace")))
                due = time.monotonic() + line.pause


def _last_words(output: str) -> str:
    """Return the last line of an output that has words."""
    lines = [line.strip() for line in re.split(r"[\r\n]", _ESCAPES.sub("", output))]
    return next((line for line in reversed(lines) if line), "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of an interrupted command, and drop its output. Kill it if it does not end."""
    assert process.stdout is not None
    # Without a reader, it might wait for ever for room in the pipe. A child of it may hold the pipe open for longer.
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def quietly(main: Callable[[], int | None]) -> NoReturn:
    """Run the main function of a program, and exit. Ctrl-C ends the process by its signal, as make expects, without a word."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        sys.exit(128 + signal.SIGINT)  # where the signal is blocked


if __name__ == "__main__":
    quietly(lambda: show(sys.argv[2:]) if sys.argv[1] == "--show" else run(sys.argv[1], sys.argv[2:]))
