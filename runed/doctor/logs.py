"""The last errors of the daemon's log, explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from runed.doctor.finding import Finding, Patient, ok, warning
from runed.reasons import find

_BYTES = 512 * 1024
"""Bytes of the end of the log that are read."""

_MOST = 3
"""Most errors that are told."""

_RECENT = timedelta(days=1)
"""The age of an error that may still matter."""


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


def last_errors(patient: Patient) -> Iterator[Finding]:
    """Tell the last errors of the log, each with the remedy of its reason."""
    found = deque(_errors(tail(patient.paths.events_log)), maxlen=_MOST)
    if not found:
        told_above = "; the failure of the daemon is told above" if patient.health and patient.health.is_degraded else ""
        yield ok("last errors", f"the log has none within a day{told_above}")
    for line in found:
        said = line.problem or line.error or line.error_type
        rows = find(line.code) or find(line.reason)
        told = f"{line.timestamp:%F %T} UTC: {line.message}{f': {line.reason or said}' if line.reason or said else ''}"
        remedy = f"{rows[0].remedy}" if rows else "see `runed logs`, and report it with `runed doctor --bundle`"
        yield warning("last errors", told, remedy)


def tail(path: Path, size: int = _BYTES) -> list[bytes]:
    """Return the last lines of a log; none if it cannot be read."""
    try:
        with path.open("rb") as file:
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
