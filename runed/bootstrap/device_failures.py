"""The devices on which an engine failed on this machine, so that each failure is waited for only once."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runed.bootstrap.audit import now
from runed.files import read_record, write_atomically
from runed.log import get_logger

_MAX_FAILURES = 32
"""Most failures that are kept. Those of earlier drivers, engines and models are never asked for again."""

_log = get_logger(__name__)


class DeviceUse(msgspec.Struct, frozen=True):
    """The use of an accelerator by an engine. With another engine, driver or model, it may work.

    Attributes:
        accelerator: As in `Device`.
        engine: The build of the engine.
        driver: The version of the driver.
        model: The SHA-256 of the model.
    """

    accelerator: str
    engine: str
    driver: str
    model: str


class _Failure(msgspec.Struct, frozen=True):
    use: DeviceUse
    reason: str
    at: str


class DeviceFailures:
    """The file of the failures.

    Args:
        path: The file. A damaged file counts as empty.
        forget: An accelerator whose failures are forgotten, or "".
    """

    def __init__(self, path: Path, *, forget: str = "") -> None:
        self._path = path
        self._failures = [each for each in read_record(path, list[_Failure]) or [] if each.use.accelerator != forget]

    def reason(self, use: DeviceUse) -> str | None:
        """Return the reason why a use failed, or None if it did not."""
        return next((failure.reason for failure in self._failures if failure.use == use), None)

    def remember(self, use: DeviceUse, reason: str) -> None:
        """Remember a failure. If the file cannot be written, this object still knows it."""
        others = [failure for failure in self._failures if failure.use != use]
        self._failures = [*others, _Failure(use, reason, now())][-_MAX_FAILURES:]
        _log.warning("a device failed and is not used again", accelerator=use.accelerator, reason=reason)
        try:
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(self._failures)))
        except OSError as error:
            _log.warning("cannot remember the failure of a device", error=error.strerror)
