"""The last errors of the daemon's log, explained."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from runed.doctor.finding import Finding, Patient, ok, warning
from runed.files import open_regular
from runed.reasons import find

_BYTES = 512 * 1024
"""Bytes of the end of the log that are read."""

_MOST = 3
"""Most errors that are told."""

_RECENT = timedelta(days=1)
"""The age of an error that may still matter."""

_HERE = "`runed doctor`"
"""What a remedy says of this command, whose reader runs it at this moment."""

_KILLED = (
    "mostly the system does so where memory is short: look at `dmesg` and the memory of this machine or container, and lower "
    "RUNED_MEMORY or choose a smaller model; the engine is started again by itself"
)

_OBITUARY = re.compile(r"(.*?; (?:it said nothing|its last words: .*?))(?:; (if .*))?", re.DOTALL)
"""The end of a process with its last words, in which anything may stand, and what to do, if that is known."""

_UNKNOWN = "see `runed logs` and `runed logs --engine`; if it comes again, report it with `runed doctor --bundle`"


class Line(msgspec.Struct):
    """What every line of the log has, and what lines about errors may have."""

    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    level: str
    message: str
    reason: str = ""
    problem: str = ""
    error: str = ""
    error_type: str = ""
    code: str = ""

    @property
    def told(self) -> str:
        """What the line says, without its time and the remedy in it."""
        said = parted(self.reason)[0] or self.problem or self.error or self.error_type
        return f"{self.message}: {said}" if said else self.message

    @property
    def remedy(self) -> str:
        """What to do about it: what the line itself says, or its reason; "" if neither tells."""
        if "SIGKILL" in self.reason:
            return _KILLED
        if own := parted(self.reason)[1]:
            return own
        rows = find(self.code) or find(self.reason)
        return " ".join(part for part in re.split(r"(?<=\.) ", rows[0].remedy) if _HERE not in part) if rows else ""


def last_errors(patient: Patient) -> Iterator[Finding]:
    """Tell the last errors of the log, each once and with the remedy of its reason."""
    told: dict[str, list[Line]] = {}
    for line in _errors(tail(patient.paths.events_log)):
        told.setdefault(line.told, []).append(line)
    if not told:
        told_above = "; the failure of the daemon is told above" if patient.health and patient.health.is_degraded else ""
        yield ok("last errors", f"the log has none within a day{told_above}")
    health = patient.health
    started = datetime.fromtimestamp(time.time() - health.uptime_seconds, UTC) if health else None
    for same in sorted(told.values(), key=lambda same: same[-1].timestamp)[-_MOST:]:
        last = same[-1]
        times = f"{len(same)} times, the last at " if len(same) > 1 else ""
        detail = f"{times}{last.timestamp:%F %T} UTC: {last.told}"
        if started is not None and last.timestamp < started:
            yield ok("last errors", f"{detail}; before the daemon that runs now began")
        else:
            yield warning("last errors", detail, last.remedy or _UNKNOWN)


def parted(message: str) -> tuple[str, str]:
    """Return what an error says of the fault, and what it says to do; "" if it does not tell that."""
    if match := _OBITUARY.fullmatch(message):
        return match[1], match[2] or ""
    what, _, remedy = message.partition("; ")
    return what, remedy


def remedy_of(patient: Patient, message: str) -> str:
    """Return the remedy of a failure by the line of the log that has its message; "" if none has."""
    for line in _errors(tail(patient.paths.events_log)):
        if any(text and text in message for text in (line.reason, line.problem, line.error)) and line.remedy:
            return line.remedy
    return ""


def tail(path: Path, size: int = _BYTES) -> list[bytes]:
    """Return the last lines of a log; none if it cannot be read."""
    try:
        # A link could lead to a file of which nothing may get into an archive.
        with os.fdopen(open_regular(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            lines = file.read(size).splitlines()
    except OSError:
        return []
    return lines[1:] if length > size else lines


def _errors(lines: list[bytes]) -> Iterator[Line]:
    for data in lines:
        try:
            line = msgspec.json.decode(data, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a line of another program, such as a traceback
            continue
        if line.level in {"error", "critical"} and datetime.now(UTC) - line.timestamp < _RECENT:
            yield line
