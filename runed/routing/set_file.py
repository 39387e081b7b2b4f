"""The file of a centroid set: one page with a description, then the values.

The values are read into memory and never mapped: if another process shortened a mapped file, SIGBUS would end the daemon.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from runed.domain.requests import CentroidHeader
from runed.errors import BadCentroidsError
from runed.files import NewFile, decode_record, open_regular
from runed.routing.centroids import CentroidSet, Content, Matrix, block_rows, raw

FORMAT = 1
"""The number of this format. A file with another number is for another version of runed."""

PAGE_BYTES = 4096
"""Bytes before the values: the description as JSON, padded with spaces."""

_VALUE_BYTES = 4


class UnusableFileError(Exception):
    """A file has no set that can be served. The text tells the reason."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first page.

    Attributes:
        format: `FORMAT`.
        model: The identity of the model whose vectors the set is for.
        version: The name of the set.
        dim: The number of values of each centroid.
        nlist: The number of centroids.
        preset: The name of the parameters that the set was built with.
        checksum: `Content.checksum` of version and model.
    """

    format: int
    model: str
    version: str
    dim: int
    nlist: int
    preset: str
    checksum: str

    @property
    def file_bytes(self) -> int:
        """The size of a complete file."""
        return PAGE_BYTES + self.nlist * self.dim * _VALUE_BYTES


class IncomingFile:
    """A set that is being received, in a temporary file beside the one that it will replace. For one thread at a time.

    Args:
        path: The file to replace; its directory must exist.
        header: The sender's description of the set.
        model: The identity of the model whose vectors the set is for.

    Attributes:
        content: The hash and norm of the centroids so far.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, header: CentroidHeader, *, model: str) -> None:
        self.content = Content(dim=header.dim, nlist=header.nlist, preset=header.preset)
        self._header = header
        self._model = model
        self._new = NewFile(path)
        self._new.file.seek(PAGE_BYTES)

    def append(self, block: Matrix) -> None:
        """Write the next centroids.

        Raises:
            BadCentroidsError: A value is not finite.
            OSError: They cannot be written.
        """
        self.content.update(block)
        self._new.file.write(raw(block))

    def publish(self, version: str) -> CentroidSet:
        """Publish the complete set in one step.

        Args:
            version: The name of the set.

        Raises:
            OSError: The set cannot be written and read again.
        """
        description = Description(
            format=FORMAT,
            model=self._model,
            version=version,
            dim=self._header.dim,
            nlist=self._header.nlist,
            preset=self._header.preset,
            checksum=self.content.checksum(version, self._model),
        )
        self._new.file.seek(0)
        self._new.file.write(msgspec.json.encode(description).ljust(PAGE_BYTES))
        self._new.file.seek(0)
        try:
            centroids = _read(self._new.file, dim=self._header.dim, model=self._model)
        except UnusableFileError as error:
            raise OSError(errno.EIO, f"it was changed while it was written: {error}") from None
        self._new.publish()
        return centroids

    def discard(self) -> None:
        """Close the file, and remove it unless it was published."""
        self._new.discard()


def load(path: Path, *, dim: int, model: str) -> CentroidSet:
    """Read and verify a set.

    Args:
        path: The file.
        dim: The number of values of the model's vectors.
        model: The model's identity.

    Raises:
        FileNotFoundError: There is none.
        UnusableFileError: It is damaged, or for another model or version of runed.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path, os.O_NOFOLLOW), "rb") as file:
        return _read(file, dim=dim, model=model)


def _read(file: BinaryIO, *, dim: int, model: str) -> CentroidSet:
    """Read and verify a set from the start of an open file."""
    description = _describe(file, dim=dim, model=model)
    values = _read_values(file, description.nlist, dim)
    content = Content(dim=dim, nlist=description.nlist, preset=description.preset)
    rows = block_rows(dim)
    try:
        for start in range(0, description.nlist, rows):
            content.update(values[start : start + rows])
    except BadCentroidsError:
        raise UnusableFileError("a value is not finite") from None
    if content.checksum(description.version, model) != description.checksum:
        raise UnusableFileError("its checksum is wrong")
    return CentroidSet(values, version=description.version, max_norm=content.max_norm)


def _describe(file: BinaryIO, *, dim: int, model: str) -> Description:
    """Read the first page."""
    description = decode_record(file.read(PAGE_BYTES), Description)
    if description is None:
        raise UnusableFileError("its description cannot be read")
    if description.format != FORMAT:
        raise UnusableFileError("it is for another version of runed")
    if (description.model, description.dim) != (model, dim):
        raise UnusableFileError("it is for another model")
    if description.nlist < 1 or os.fstat(file.fileno()).st_size != description.file_bytes:
        raise UnusableFileError("its size is wrong")
    return description


def _read_values(file: BinaryIO, nlist: int, dim: int) -> Matrix:
    """Read all centroids."""
    values = np.empty((nlist, dim), "<f4")
    rest = raw(values)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined] # typeshed's BinaryIO lacks it
        if not count:
            raise UnusableFileError("it is cut short")
        rest = rest[count:]
    return values
