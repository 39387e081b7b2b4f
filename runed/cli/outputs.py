"""How vectors are written: JSON, JSON lines or a NumPy file; whole, or recognizably not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from runed.cli.boundary import error_document
from runed.cli.inputs import STANDARD_INPUT, Item
from runed.errors import SettingsError

Vectors = NDArray[np.float32]
"""Vectors as rows: shape (texts, dim)."""


class Writer(ABC):
    """Writes the vectors of one run, in order, to a stream.

    Args:
        stream: Where to.
        count: The number of vectors that will be written.
        dim: The number of values of each.
        model_identity: The model that they are of.
    """

    def __init__(self, stream: BinaryIO, *, count: int, dim: int, model_identity: str) -> None:
        self._stream = stream
        self._count = count
        self._dim = dim
        self._model_identity = msgspec.json.encode(model_identity)
        self._index = 0

    def begin(self) -> None:
        """Write what comes before the first vector; by default nothing."""
        return

    @abstractmethod
    def write(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write the next vectors, one an item."""

    def end(self) -> None:
        """Write what comes after the last vector; by default nothing."""
        return

    def fail(self, _reason: str, _message: str, /) -> None:
        """Write what keeps incomplete output from being taken for complete; by default nothing is needed for that."""
        return

    def _next_fields(self, item: Item) -> bytes:
        """Give what identifies the next vector, as JSON members."""
        index = self._index
        self._index += 1
        return b'"index":%d,"id":%b' % (index, item.id) if item.id else b'"index":%d' % index


class JsonWriter(Writer):
    """One document: `{"model_identity": ..., "dim": ..., "embeddings": [{"index": ..., "embedding": [...]}, ...]}`."""

    def begin(self) -> None:
        """Open the document."""
        self._stream.write(b'{"model_identity":%b,"dim":%d,"embeddings":[' % (self._model_identity, self._dim))

    def write(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write the next elements."""
        for item, vector in zip(items, vectors, strict=True):
            comma = b"," if self._index else b""
            self._stream.write(b'%b\n{%b,"embedding":%b}' % (comma, self._next_fields(item), _numbers(vector)))

    def end(self) -> None:
        """Close the document; until then it does not parse."""
        self._stream.write(b"\n]}\n")


class JsonLinesWriter(Writer):
    """One object a line, each of use without the others: `{"index": ..., "model_identity": ..., "embedding": [...]}`."""

    _within_line = False

    def write(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write the next lines and hand them on at once."""
        for item, vector in zip(items, vectors, strict=True):
            fields = self._next_fields(item)
            self._within_line = True
            self._stream.write(b'{%b,"model_identity":%b,"embedding":%b}\n' % (fields, self._model_identity, _numbers(vector)))
            self._within_line = False
        self._stream.flush()

    def fail(self, reason: str, message: str, /) -> None:
        """Write a last line without an embedding, since nothing else about lines shows that some are missing."""
        self._stream.write(b"\n" * self._within_line + error_document(reason, message))


class NpyWriter(Writer):
    """A NumPy array of float32 with shape (count, dim); its header tells the shape, so `numpy.load` refuses a shorter file."""

    def begin(self) -> None:
        """Write the header."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._dim)}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write the next rows."""
        assert len(items) == len(vectors)
        self._stream.write(vectors.astype("<f4", copy=False).tobytes())


WRITERS: dict[str, type[Writer]] = {
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
    "npy": NpyWriter,
}
"""The formats by name, which is the usual file name extension too."""


def choose_format(name: str | None, output: str) -> str:
    """Give the format: the one asked for, else that of the file's extension, else JSON.

    Raises:
        SettingsError: The format is binary and would go to a terminal.
    """
    suffix = Path(output).suffix.removeprefix(".")
    chosen = name or (suffix if suffix in WRITERS else "json")
    if chosen == "npy" and output == STANDARD_INPUT and sys.stdout.isatty():
        raise SettingsError("--format npy is binary and standard output is a terminal; add `-o FILE` or redirect it")
    return chosen


@contextlib.contextmanager
def open_output(output: str) -> Iterator[BinaryIO]:
    """Give the stream to write to; a file appears under its name only when the block has ended without an exception.

    Args:
        output: A path, or "-" for standard output. A device or pipe is written to directly.

    Raises:
        SettingsError: The file cannot be written.
    """
    if output == STANDARD_INPUT:
        yield sys.stdout.buffer
        return
    path = Path(output).resolve()
    try:
        if path.exists() and not path.is_file():
            temporary = None
            stream = path.open("wb")
        else:
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            stream = temporary.open("xb")
    except OSError as error:
        raise SettingsError(f"--output {output} cannot be written: {error.strerror}") from None
    try:
        with stream:
            yield stream
            if temporary:
                stream.flush()
                os.fsync(stream.fileno())
        if temporary:
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o7777)
            temporary.replace(path)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _numbers(vector: NDArray[np.float32]) -> bytes:
    """Give a vector as a JSON array of the shortest decimals that read back as the same float32."""
    return b"[%b]" % ",".join(vector.astype("U").tolist()).encode()
