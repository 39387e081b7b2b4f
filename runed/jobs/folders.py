"""Directories of a job's files: on this machine, or on any file system that pyarrow knows, such as that of S3."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import IO

from runed.errors import SettingsError
from runed.jobs import parquet
from runed.jobs.file_systems import ArrowFiles, Entry, LocalFiles
from runed.urls import printable_url, scheme_of

OWN = "_runed"
"""The directory for files of ours in an output directory. Readers of datasets skip names that begin with an underscore."""

_WILD = re.compile(r"[*?\[]")

_MAX_RECORD_BYTES = 1024 * 1024
"""Most bytes that are read of a small file."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a directory.

    Attributes:
        name: Its path below the directory, with "/".
        size: Its size in bytes.
        changed: The time of its last change, in nanoseconds since 1970; 0 if it is not told.
    """

    name: str
    size: int
    changed: int


def is_many(location: str) -> bool:
    """Return whether a location names many files, or one that is not on this machine: a directory, a glob or a URL."""
    # Unlike the methods of `Path`, these two tell of a directory that may not be looked into that there is no such file.
    is_wild = _WILD.search(location) is not None and not os.path.exists(location)  # noqa: PTH110 # see above
    return bool(scheme_of(location)) or os.path.isdir(location) or is_wild  # noqa: PTH112 # see above


def locate(location: str) -> tuple[Folder, list[str]]:
    """Split a location into a directory and the pattern of the files below it, for `Folder.matching`.

    Args:
        location: The path or URL of a directory, of a file, or a glob. In a glob, "*" and "?" stand for characters of one name,
            and "**" for any directories. In a URL, "?" begins the query.

    Raises:
        SettingsError: It cannot be read.
    """
    place, query = _split_query(location)
    parts = place.split("/")
    wild = next((index for index, part in enumerate(parts) if _WILD.search(part)), None)
    if wild is None or (not scheme_of(location) and os.path.exists(place)):  # noqa: PTH110 # as in `is_many`
        folder = Folder(location)
        if not folder.is_file:
            return folder, ["**", "*"]
        wild = len(parts) - 1
        parts[wild] = escape(parts[wild])
    return Folder(("/".join(parts[:wild]) or ("/" if wild else ".")) + query), parts[wild:]


class Folder:
    """A directory. It need not exist before a file is put into it.

    Args:
        location: A path, or a URL as of `pyarrow.fs.FileSystem.from_uri`.

    Attributes:
        shown: The location for messages, without secrets.
        local: The path on this machine; None for another file system.

    Raises:
        SettingsError: No file system has such a URL, or pyarrow is missing, which URLs need.
    """

    def __init__(self, location: str) -> None:
        self.shown = (printable_url(location) if scheme_of(location) else location).rstrip("/") or "/"
        self._files: LocalFiles | ArrowFiles = LocalFiles()
        if scheme_of(location):
            fs = parquet.pyarrow("pyarrow.fs")
            with self._errors(""):
                system, self._root = fs.FileSystem.from_uri(location)
            if system.type_name != "local":
                self._files = ArrowFiles(system)
        else:
            self._root = os.path.abspath(Path(location).expanduser())  # noqa: PTH100 # keeps links
        self._root = self._root.rstrip("/")
        self.local = Path(self._root or "/") if self._files.is_local else None

    @property
    def is_file(self) -> bool:
        """Whether the location is a file, and no directory."""
        with self._errors(""):
            entry = self._files.entry(self._root or "/")
        return entry is not None and entry.is_file

    def matching(self, patterns: list[str]) -> list[Found]:
        """Return the files whose names match a pattern for each of their parts, by name. "**" stands for any number of parts.

        Names that begin with "." or "_" are left out, as readers of datasets do, unless the pattern begins so, too.
        """
        with self._errors(""):
            entries = self._files.entries(self._root or "/", deep=is_deep(patterns))
            found = [self._found(entry) for entry in entries if entry.is_file]
        return sorted((one for one in found if _matches(one.name.split("/"), patterns)), key=lambda one: one.name)

    def find(self, name: str) -> Found | None:
        """Return a file; None if there is none of that name."""
        with self._errors(name):
            entry = self._files.entry(self.path(name))
        return self._found(entry) if entry is not None and entry.is_file else None

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file, for the time of a `with` block."""
        with self._errors(name), self._files.read(self.path(name)) as file:
            yield file

    def record(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none of that name."""
        if self.find(name) is None:
            return None
        with self.reading(name) as file:
            return file.read(_MAX_RECORD_BYTES)

    def put(self, name: str, content: IO[bytes]) -> Found:
        """Write a file. It gets its name when it is complete, and then replaces one of that name.

        Args:
            name: Its name.
            content: Its content, from the present position on.
        """
        temporary = f"{OWN}/{secrets.token_hex(8)}.tmp"
        with self._errors(name):
            try:
                with self._files.write(self.path(temporary)) as file:
                    shutil.copyfileobj(content, file, 1024 * 1024)
                self._files.move(self.path(temporary), self.path(name))
            except BaseException:
                with suppress(OSError):
                    self._files.remove(self.path(temporary))
                raise
        found = self.find(name)
        if found is None:
            raise SettingsError(f"{self.shown}/{name} was written and is not there; does another program remove it?")
        return found

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.find(name) is not None:
            with self._errors(name):
                self._files.remove(self.path(name))

    def path(self, name: str) -> str:
        """Return the path of a file on its file system."""
        return f"{self._root}/{name}"

    def lies_in(self, other: Folder, *, below: bool) -> bool:
        """Return whether this is the same directory as another one or, with `below`, lies anywhere in it."""
        if not self._files.is_same(other._files):
            return False
        # By their real places: a link to the input is the input.
        ours, theirs = (
            os.path.realpath(one.path("")).rstrip("/") + "/" if one.local else one.path("") for one in (self, other)
        )
        return ours.startswith(theirs) if below else ours == theirs

    def _found(self, entry: Entry) -> Found:
        return Found(entry.path[len(self._root) :].lstrip("/"), entry.size, entry.changed)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # errors of pyarrow are one of these
            place = f"{self.shown}/{name}" if name else self.shown
            raise SettingsError(f"{place} cannot be used: {getattr(error, 'strerror', None) or error}") from None


def is_deep(patterns: list[str]) -> bool:
    """Return whether files in directories below match, too."""
    return len(patterns) > 1 or "**" in patterns


def _split_query(location: str) -> tuple[str, str]:
    """Split the query from a URL, with its "?". A path has none."""
    place, mark, query = location.partition("?") if scheme_of(location) else (location, "", "")
    return place, mark + query


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        hidden = parts[0].startswith((".", "_"))
        return _matches(parts, patterns[1:]) or (not hidden and _matches(parts[1:], patterns))
    if parts[0].startswith((".", "_")) and not patterns[0].startswith((".", "_")):
        return False
    return fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
