"""The mark of `runed stop --for`: until a time, nobody starts the daemon of a home."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Self

import msgspec

from runed.errors import KeptStoppedError
from runed.files import read_record, write_atomically
from runed.paths import Paths
from runed.processes import boot_id

LONGEST = 30 * 86400.0
"""Most seconds for which a daemon may be kept stopped. A mark that somebody forgot ends some day."""


class Hold(msgspec.Struct, frozen=True):
    """The document `stopped.json`.

    Within one boot of the machine, the clock counts that nobody can set. After a restart, that of the machine counts.

    Attributes:
        seconds: How long the daemon is kept stopped.
        since: The time of the command, in seconds since 1970.
        boot: The boot of the machine at that time; "" if the system does not tell it.
        uptime: The time of the command, in seconds of `_uptime`.
    """

    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST)]
    since: float
    boot: str
    uptime: float

    @classmethod
    def for_seconds(cls, seconds: float) -> Self:
        """Return a mark that begins now."""
        return cls(seconds, time.time(), boot_id(), _uptime())

    @property
    def remaining(self) -> float:
        """Seconds until the daemon may be started; 0 if it may be.

        After a restart with a clock that was set back, the time of the command is to come. Such a mark does not count, since
        it could last for years.
        """
        same_boot = self.boot and self.boot == boot_id()
        passed = _uptime() - self.uptime if same_boot else time.time() - self.since
        return max(0.0, self.seconds - passed) if passed >= 0 else 0.0

    @property
    def until(self) -> str:
        """The end for people, in the time of this machine, such as "14:05", with the date if it is another day."""
        end = time.localtime(time.time() + self.remaining)
        same_day = time.strftime("%F", end) == time.strftime("%F")
        return time.strftime("%H:%M:%S" if self.remaining < 60 else "%H:%M" if same_day else "%F %H:%M", end)  # noqa: PLR2004 # a minute


def read_hold(path: Path) -> Hold | None:
    """Return the mark that counts now, or None. A broken one does not count."""
    hold = read_record(path, Hold)
    return hold if hold is not None and hold.remaining else None


def write_hold(path: Path, seconds: float) -> Hold:
    """Write a mark that begins now. The home must exist.

    Raises:
        OSError: It cannot be written.
    """
    hold = Hold.for_seconds(seconds)
    write_atomically(path, msgspec.json.encode(hold) + b"\n")
    return hold


def lift_hold(path: Path) -> None:
    """Remove the mark, if there is one."""
    path.unlink(missing_ok=True)


def check_hold(paths: Paths) -> None:
    """Refuse to start a daemon that is kept stopped.

    Raises:
        KeptStoppedError: It is.
    """
    if (hold := read_hold(paths.hold)) is not None:
        raise KeptStoppedError(
            f"`runed stop --for` keeps the daemon of {paths.home} stopped until {hold.until}; "
            "wait, or run `runed ensure --anyway`, which starts it now",
            metadata={"seconds": f"{hold.remaining:.0f}"},
        )


def _uptime() -> float:
    """Return seconds that nobody can set, and that go on while the machine sleeps. They count within one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
