"""The devices that were the fastest on this machine, so that the next start uses them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runed.bootstrap.by_model import keep, read_of
from runed.bootstrap.device_failures import DeviceUse


class DeviceChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The device that was the fastest for a model.

    Attributes:
        model: The SHA-256 of the model.
        compared: The uses of all accelerators that could be compared with the processors. With another one, such as after an
            update of a driver or an engine, the choice is void.
        chosen: The use that was the fastest; None for the processors.
        chosen_at: The time of the comparison, in ISO 8601.
    """

    model: str
    compared: tuple[DeviceUse, ...]
    chosen: DeviceUse | None
    chosen_at: str


def read_choice(path: Path, model: str) -> DeviceChoice | None:
    """Return the choice for a model, or None if there is none.

    Args:
        path: The file that `keep_choice` writes. A missing or damaged file counts as empty.
        model: The SHA-256 of the model.
    """
    return read_of(path, DeviceChoice, model)


def keep_choice(path: Path, choice: DeviceChoice) -> None:
    """Keep a choice for the next start. It replaces an earlier one for the same model.

    Raises:
        ForeignPathError: The directory of the file cannot be made.
        OSError: The file cannot be written.
    """
    keep(path, choice)
