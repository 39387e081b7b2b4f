"""The file systems of a job's directories: that of this machine, and others by pyarrow, such as S3."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from runed.jobs import parquet

_OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems of pyarrow that have no directories. To make one would leave an empty object."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory.

    Attributes:
        path: Its path on its file system.
        is_file: Whether it is a regular file.
        is_directory: Whether it is a directory.
        size: The size of a file in bytes.
        changed: The time of its last change, in nanoseconds since 1970; 0 if it is not told.
    """

    path: str
    is_file: bool
    is_directory: bool
    size: int
    changed: int


class LocalFiles:
    """The file system of this machine. Links are followed. Each method raises `OSError`."""

    is_local = True

    def entry(self, path: str) -> Entry | None:
        """Return what is at a path; None for nothing."""
        try:
            info = os.stat(path)  # noqa: PTH116 # paths are strings here, as on other file systems
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, stat.S_ISREG(info.st_mode), stat.S_ISDIR(info.st_mode), info.st_size, info.st_mtime_ns)

    def entries(self, folder: str, *, deep: bool) -> Iterator[Entry]:
        """Yield what a directory holds, with `deep` in the directories below it, too.

        A link that leads to a directory above it is left out: two of them would make a million paths.
        """
        pending = [(folder, frozenset([os.path.realpath(folder)]))]
        while pending:
            place, above = pending.pop()
            with os.scandir(place) as found:
                for path in [one.path for one in found]:
                    # A link that leads nowhere is no entry.
                    if (entry := self.entry(path)) is None:
                        continue
                    yield entry
                    if deep and entry.is_directory and (real := os.path.realpath(path)) not in above:
                        pending.append((path, above | {real}))

    def read(self, path: str) -> IO[bytes]:
        """Open a file."""
        return Path(path).open("rb")

    def write(self, path: str) -> IO[bytes]:
        """Open a file to write, and make the directories that it needs."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")

    def move(self, path: str, target: str) -> None:
        """Give a file another name, and make the directories that it needs. A file of that name is replaced."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(path).replace(target)

    def remove(self, path: str) -> None:
        """Remove a file."""
        Path(path).unlink()

    def is_same(self, other: LocalFiles | ArrowFiles) -> bool:
        """Return whether two are one file system."""
        return isinstance(other, LocalFiles)


class ArrowFiles:
    """A file system of pyarrow. Its methods are those of `LocalFiles`; each raises `OSError` or `ValueError`, as pyarrow does.

    Args:
        system: A `pyarrow.fs.FileSystem`.
    """

    is_local = False

    def __init__(self, system: Any) -> None:  # noqa: ANN401 # pyarrow has no type information
        self.system = system

    def entry(self, path: str) -> Entry | None:
        """Return what is at a path; None for nothing."""
        entry = _entry(self.system.get_file_info(path))
        return entry if entry.is_file or entry.is_directory else None

    def entries(self, folder: str, *, deep: bool) -> Iterator[Entry]:
        """Yield what a directory holds, with `deep` in the directories below it, too."""
        selector = parquet.pyarrow("pyarrow.fs").FileSelector(folder, recursive=deep)
        return map(_entry, self.system.get_file_info(selector))

    def read(self, path: str) -> IO[bytes]:
        """Open a file."""
        return cast("IO[bytes]", self.system.open_input_stream(path, compression=None))

    def write(self, path: str) -> IO[bytes]:
        """Open a file to write, and make the directories that it needs."""
        self._make_parent(path)
        return cast("IO[bytes]", self.system.open_output_stream(path))

    def move(self, path: str, target: str) -> None:
        """Give a file another name, and make the directories that it needs. A file of that name is replaced."""
        self._make_parent(target)
        self.system.move(path, target)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.system.delete_file(path)

    def is_same(self, other: LocalFiles | ArrowFiles) -> bool:
        """Return whether two are one file system."""
        return isinstance(other, ArrowFiles) and bool(self.system.equals(other.system))

    def _make_parent(self, path: str) -> None:
        if self.system.type_name not in _OBJECT_STORES:
            self.system.create_dir(path.rpartition("/")[0], recursive=True)


def _entry(info: Any) -> Entry:  # noqa: ANN401 # pyarrow has no type information
    kind = info.type.name
    return Entry(info.path, kind == "File", kind == "Directory", info.size or 0, info.mtime_ns or 0)
