"""Shows on standard error how far a download is, while a call waits for it, and that a first call waits for the engine."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runed.client.types import Health, Phase
from runed.errors import printable

GOES_ON = "the daemon goes on with it; `runed status` shows how far it is, and `runed stop` ends it"
"""What becomes of a download when the caller that waits for it is interrupted."""

_STEPS = {Phase.FETCHING_LLAMA_SERVER: "fetching the engine", Phase.FETCHING_MODEL: "fetching the model"}

_BAR = 24
"""Characters of the bar."""

_MEGABYTE = 1_000_000

_WAITING = "runed: waiting for the engine, which starts or is busy"

_SILENT_SECONDS = 1.0
"""Seconds after which a first call is no longer silent."""

_SURE_SECONDS = 1.0
"""Seconds after which the rate means something."""


class DownloadBar:
    """One line that all calls of a process share. It has no colours and is plain ASCII, so that it fits every terminal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._width = 0
        self._phase = Phase.UNSPECIFIED
        self._began = 0.0
        self._first = 0

    @contextmanager
    def waiting(self) -> Iterator[Callable[[Health], None]]:
        """Yield a function that shows a state, for the time of a wait. The line is removed at the end of the last wait."""
        with self._lock:
            self._waiting += 1
        try:
            yield self._show
        except GeneratorExit:  # nobody wants the rest of a stream
            raise
        except BaseException as end:
            # Ctrl-C, or what else ends a wait early. asyncio cancels all tasks at Ctrl-C, of which the last one tells it.
            last = isinstance(end, KeyboardInterrupt) or self._waiting == 1
            with self._lock:
                if not isinstance(end, Exception) and self._width and last:
                    self._draw("")
                    sys.stderr.write(f"runed: {GOES_ON}\n")
            raise
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting and self._width:
                    self._draw("")

    @contextmanager
    def first_call(self) -> Iterator[None]:
        """Say that a call waits for the engine, if the block takes longer than a second."""
        timer = threading.Timer(_SILENT_SECONDS, self._say_waiting)
        timer.daemon = True
        timer.start()
        try:
            with self.waiting():
                yield
        finally:
            timer.cancel()

    def _say_waiting(self) -> None:
        with self._lock:
            if self._waiting and not self._width:
                self._draw(_WAITING)

    def _show(self, health: Health) -> None:
        with self._lock:
            step = _STEPS.get(health.phase) if health.phase else None
            if step is not None:
                self._draw(self._line(step, health))
            elif self._width:
                self._draw(f"runed: {printable(health.message)}")

    def _line(self, step: str, health: Health) -> str:
        now, done, total = time.monotonic(), health.bytes_done, health.bytes_total
        if not total:
            return f"runed: {step}: {printable(health.message)}"
        if health.phase is not self._phase or done < self._first:
            self._phase, self._began, self._first = health.phase or Phase.UNSPECIFIED, now, done
        share = min(done / total, 1.0)
        line = f"runed: {step} [{'=' * int(share * _BAR):<{_BAR}}] {share:4.0%}"
        line += f"  {done / _MEGABYTE:,.0f} of {total / _MEGABYTE:,.0f} MB"
        passed = now - self._began
        if passed >= _SURE_SECONDS and (rate := (done - self._first) / passed):
            minutes, seconds = divmod(round((total - done) / rate), 60)
            line += f"  {rate / _MEGABYTE:,.1f} MB/s  {minutes}:{seconds:02} left"
        return line

    def _draw(self, line: str) -> None:
        """Put a line into the place of the last one. A notebook knows the carriage return, but not how to erase a line."""
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line:<{self._width}}" if line else f"\r{'':<{self._width}}\r")
        sys.stderr.flush()
        self._width = len(line)


_SHARED = DownloadBar()


def download_bar(*, wanted: bool) -> DownloadBar | None:
    """Return what shows downloads, if a person can see it: on a terminal, or in a notebook.

    Args:
        wanted: Whether the caller and the settings want it.
    """
    return _SHARED if wanted and sys.stderr is not None and (sys.stderr.isatty() or _in_notebook()) else None


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, whose standard error is shown beside the code."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return hasattr(get_ipython(), "kernel") if get_ipython is not None else False
