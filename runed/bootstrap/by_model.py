"""Files with one record a model, the oldest of which are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from runed.files import read_record, write_atomically
from runed.paths import ensure_private_dir

_MAX_RECORDS = 32
"""Most records that are kept. The oldest are dropped first."""


class OfModel(Protocol):
    """A record about a model."""

    @property
    def model(self) -> str:
        """The SHA-256 of the model."""
        ...


_T = TypeVar("_T", bound=OfModel)


def read_of(path: Path, type_: type[_T], model: str) -> _T | None:
    """Return the record about a model, or None if there is none.

    Args:
        path: The file that `keep` writes. A missing or damaged file counts as empty.
        type_: The type of a record, a `msgspec.Struct`.
        model: The SHA-256 of the model, or its first digits.
    """
    return next((record for record in _read(path, type_) if record.model.startswith(model)), None)


def keep(path: Path, record: _T) -> None:
    """Keep a record. It replaces an earlier one about the same model.

    Raises:
        ForeignPathError: The directory of the file cannot be made.
        OSError: The file cannot be written.
    """
    others = [each for each in _read(path, type(record)) if each.model != record.model]
    ensure_private_dir(path.parent)
    write_atomically(path, msgspec.json.format(msgspec.json.encode([*others, record][-_MAX_RECORDS:])))


def _read(path: Path, type_: type[_T]) -> list[_T]:
    return read_record(path, list[type_]) or []  # type: ignore[valid-type] # a type that is known only here
