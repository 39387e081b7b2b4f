"""Reports the progress of an installation: to a callback a few times a second, and to the log at every tenth."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from runed.errors import printable
from runed.files import read_record
from runed.log import get_logger

_INTERVAL = 0.2
"""Seconds between two reports of a number that changes all the time."""

_log = get_logger(__name__)


class Phase(Enum):
    """The part that is being installed, or the work that follows."""

    FETCHING_LLAMA_SERVER = "fetching llama-server"
    FETCHING_MODEL = "fetching model"
    CHOOSING_ENGINE = "choosing the engine"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an installation.

    Attributes:
        phase: The part that is being installed.
        bytes_done: The bytes so far.
        bytes_total: The bytes of the download, or 0 if they are not known yet.
        message: One sentence for people.
        downloading: Whether this or another process has downloaded something since the bootstrap began.
    """

    phase: Phase
    bytes_done: int
    bytes_total: int
    message: str
    downloading: bool = False


class _Shared(msgspec.Struct, frozen=True):
    """The progress of one process as others read it."""

    pid: int
    phase: Phase
    done: int
    total: int
    message: str


class ProgressReporter:
    """Passes progress on, a few times a second at most.

    Args:
        report: Called with the progress.
    """

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._phase = Phase.FETCHING_LLAMA_SERVER
        self._step = ""
        self._done = 0
        self._total = 0
        self._downloading = False
        self._logged_tenth = 0
        self._reported_at = 0.0
        self._late: asyncio.TimerHandle | None = None
        self._file: Path | None = None
        self._relayed: object = None

    @contextmanager
    def shared(self, file: Path) -> Iterator[None]:
        """Write the progress to a file, too, for the time of a `with` block. Others show it by `relay`."""
        self._file = file
        try:
            yield
        finally:
            self._file = None
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def relay(self, file: Path, holder: int) -> None:
        """Report how far another process is, if it has told anything new.

        Args:
            file: The file that it writes; see `shared`.
            holder: Its process id.
        """
        seen = read_record(file, _Shared)
        if seen is not None and seen.pid != holder:
            seen = None
        if self._relayed == (holder, seen):
            return
        if self._relayed is None or seen is None:
            _log.info("bootstrap", step=f"waiting for process {holder}, which installs engine and model")
        self._relayed = holder, seen
        if seen is not None:
            self._phase, self._done, self._total = seen.phase, seen.done, seen.total
        told = f": {seen.message}" if seen else ""
        self.say(f"waiting for process {holder}, which installs engine and model{told}", downloading=True)

    def begin(self, phase: Phase, step: str, *, total: int | None = None, downloading: bool = False) -> None:
        """Begin a step, which `step` describes: a download, whose `total` bytes may not be known, or other work."""
        self._phase, self._step, self._done, self._total, self._logged_tenth = phase, step, 0, total or 0, 0
        self._downloading |= downloading
        _log.info("bootstrap", step=step, bytes_total=total)
        self.say(step)

    def advance(self, done: int) -> None:
        """Report the number of bytes so far, within `_INTERVAL` seconds, also if no more bytes follow: a download may stall."""
        self._done = done
        tenth = done * 10 // self._total if self._total else 0
        if tenth > self._logged_tenth:
            self._logged_tenth = tenth
            _log.info("bootstrap", step=self._step, percent=tenth * 10, bytes_done=done)
        if done == self._total or self._is_due():
            self.say(self._step)
        elif self._late is None:
            self._late = asyncio.get_running_loop().call_later(_INTERVAL, self.say, self._step)

    def pause(self) -> None:
        """Cancel the report that `advance` has put off."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def work(self, step: str) -> None:
        """Report a sentence, unless the last report was a moment ago."""
        if self._is_due():
            self.say(step)

    def say(self, message: str, *, downloading: bool = False) -> None:
        """Report a sentence at once. `downloading` tells that it is about a download without bytes to count."""
        self.pause()
        self._downloading |= downloading
        self._reported_at = time.monotonic()
        self._report(Progress(self._phase, self._done, self._total, printable(message), self._downloading))
        if self._file is not None:
            shared = _Shared(os.getpid(), self._phase, self._done, self._total, printable(message))
            with suppress(OSError):  # such as a full disk, which the installation itself will meet
                self._file.write_bytes(msgspec.json.encode(shared))

    def _is_due(self) -> bool:
        return time.monotonic() - self._reported_at >= _INTERVAL
