"""The receipts of a job of many files: which parts are done, and by which checksums."""

from __future__ import annotations

import hashlib
import io
from typing import IO

import msgspec

from runed.errors import RunedError
from runed.files import decode_record
from runed.jobs.folders import Folder, Found

VERSION = 1
"""The version of the format of receipts. A receipt of another version counts as missing."""

_PIECE = 1024 * 1024
"""Bytes of a file that are read at once."""


class FileMark(msgspec.Struct, frozen=True):
    """The content of a file, and what tells cheaply that it is still the same.

    Attributes:
        size: Its size in bytes.
        changed: The time of its last change, in nanoseconds since 1970.
        sha256: Its SHA-256 as hexadecimal digits.
    """

    size: int
    changed: int
    sha256: str

    @classmethod
    def of(cls, found: Found, content: IO[bytes]) -> FileMark:
        """Return the mark of a file, which is read from its present position on."""
        return cls(found.size, found.changed, _digest(content))

    def holds(self, folder: Folder, name: str) -> bool:
        """Return whether a file is still the one of this mark. It is read only if its time has changed and its size has not."""
        found = folder.find(name)
        if found is None or found.size != self.size:
            return False
        if found.changed == self.changed:
            return True
        with folder.reading(name) as file:
            return _digest(file) == self.sha256


class Receipt(msgspec.Struct, frozen=True):
    """The record of a part that is done.

    Attributes:
        version: The version of the format.
        options: The options that change the output.
        input: The file that was read.
        output: The file that was written; None if the input held no text.
        fingerprint: The space of the vectors; empty without a text.
        count: The number of texts.
        failed: The number of texts that have no vector.
    """

    version: int
    options: dict[str, str]
    input: FileMark
    output: FileMark | None
    fingerprint: str
    count: int
    failed: int

    @classmethod
    def read(cls, folder: Folder, name: str) -> Receipt | None:
        """Read a receipt; None if there is none of that name, or a damaged one."""
        receipt = decode_record(folder.record(name) or b"", Receipt)
        return receipt if receipt and receipt.version == VERSION else None

    def write(self, folder: Folder, name: str) -> None:
        """Write the receipt."""
        folder.put(name, io.BytesIO(msgspec.json.encode(self)))

    def check(self, options: dict[str, str], output: str) -> None:
        """Check that the part was made with the same options.

        Args:
            options: The options of now.
            output: The name of the output for the message.

        Raises:
            RunedError: It was made with others.
        """
        changes = [
            f'{name} was "{self.options.get(name, "")}" and is "{value}"'
            for name, value in options.items()
            if self.options.get(name, "") != value
        ]
        if changes:
            raise RunedError(f"{output} is of other options: {'; '.join(changes)}; undo the change, or start with --overwrite")


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while data := file.read(_PIECE):
        digest.update(data)
    return digest.hexdigest()
