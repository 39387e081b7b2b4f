"""The output formats: JSON, JSON lines, a NumPy array and Parquet. A reader can tell incomplete output from complete output."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import IO

import msgspec

from runed.errors import RunedError
from runed.jobs import parquet
from runed.jobs.row import JobSpace, Row


class Encoder(ABC):
    """Encodes the rows of a job. The output is the concatenation of `head`, all `rows` and `tail`.

    The bytes of a row do not depend on earlier rows, so that a job can be interrupted after any row.

    Args:
        space: The space of all vectors.
        count: The number of rows of the whole output.
    """

    convert: Callable[[IO[bytes], IO[bytes]], None] | None = None
    """A last step that some formats need: it reads the concatenated bytes from one file and writes the output to another."""

    def __init__(self, space: JobSpace, count: int) -> None:
        self._space = space
        self._count = count

    def head(self) -> bytes:
        """Return the bytes before the first row. Their number does not depend on the count."""
        return b""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of the next rows."""

    def tail(self) -> bytes:
        """Return the bytes after the last row."""
        return b""

    def failure(self, _reason: str, _message: str, /) -> bytes:
        """Return the bytes that mark output as incomplete. Most formats need none, since a cut file cannot be parsed."""
        return b""


class JsonEncoder(Encoder):
    """One document: `{"model_identity": ..., "fingerprint": ..., "dim": ..., "embeddings": [{"index": ..., ...}, ...]}`."""

    def head(self) -> bytes:
        """Return the beginning of the document."""
        return b'{"model_identity":%b,"fingerprint":%b,"dim":%d,"embeddings":[' % (
            msgspec.json.encode(self._space.model_identity),
            msgspec.json.encode(self._space.fingerprint),
            self._space.dim,
        )

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Return the next elements of the list."""
        return b"".join(b"%b\n{%b}" % (b"," if row.index else b"", _members(row, b"")) for row in rows)

    def tail(self) -> bytes:
        """Return the end of the document, without which it cannot be parsed."""
        return b"\n]}\n"


class JsonLinesEncoder(Encoder):
    """One object a line: `{"index": ..., "model_identity": ..., "embedding": [...]}`. A line can be used without the others."""

    def __init__(self, space: JobSpace, count: int) -> None:
        super().__init__(space, count)
        identity, fingerprint = msgspec.json.encode(space.model_identity), msgspec.json.encode(space.fingerprint)
        self._common = b'"model_identity":%b,"fingerprint":%b,' % (identity, fingerprint)

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Return the next lines."""
        return b"".join(b"{%b}\n" % _members(row, self._common) for row in rows)

    def failure(self, reason: str, message: str, /) -> bytes:
        """Return a last line without an index, since lines alone do not show that others are missing."""
        return b"{%b}\n" % _error(reason, message)


class NpyEncoder(Encoder):
    """A NumPy array of float32 with shape (count, dim). The row of a text without a vector is NaN.

    The header contains the shape, so `numpy.load` refuses a shorter file.
    """

    def head(self) -> bytes:
        """Return the header, in which NumPy leaves room for any count."""
        import numpy as np  # noqa: PLC0415 # 60 ms that `runed embed --help` does not spend

        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._space.dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of the next rows."""
        import numpy as np  # noqa: PLC0415 # as above

        values = np.full((len(rows), self._space.dim), np.nan, dtype="<f4")
        for position, row in enumerate(rows):
            if not isinstance(row.outcome, RunedError):
                values[position] = row.outcome.vector
        return values.tobytes()


class ParquetEncoder(Encoder):
    """A table with a row a text, see `runed.jobs.parquet.Schema`. The rows are an Arrow stream until the job is done.

    Args:
        space: As for `Encoder`, like the next one.
        count: The number of rows of the whole output.
        kept: Columns of the input that follow the others.
    """

    def __init__(self, space: JobSpace, count: int, kept: parquet.Kept | None = None) -> None:
        super().__init__(space, count)
        metadata = {"runed.fingerprint": space.fingerprint, "runed.model_identity": space.model_identity}
        self._schema = parquet.Schema(space.dim, metadata, kept)
        self.convert = self._schema.convert

    def head(self) -> bytes:
        """Return the schema as the beginning of an Arrow stream."""
        return self._schema.head()

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Return the next rows as a part of an Arrow stream."""
        good = [None if isinstance(row.outcome, RunedError) else row.outcome for row in rows]
        return self._schema.rows(
            [row.index for row in rows],
            [row.id for row in rows],
            [embedding.token_count if embedding else None for embedding in good],
            [f"{row.outcome.reason}: {row.outcome}" if isinstance(row.outcome, RunedError) else None for row in rows],
            [embedding.vector if embedding else None for embedding in good],
        )


ENCODERS: dict[str, type[Encoder]] = {
    "json": JsonEncoder,
    "jsonl": JsonLinesEncoder,
    "npy": NpyEncoder,
    "parquet": ParquetEncoder,
}
"""The encoder of each format. The format's name is also its usual file name extension."""

BINARY = ("npy", "parquet")
"""Formats that a terminal cannot show."""


def _members(row: Row, common: bytes) -> bytes:
    """Return a row as the members of a JSON object; `common` has the members that are the same for all vectors."""
    name = b'"index":%d,"id":%b,' % (row.index, row.id) if row.id else b'"index":%d,' % row.index
    outcome = row.outcome
    if isinstance(outcome, RunedError):
        return name + _error(outcome.reason, outcome.message)
    tokens = b'"token_count":%d,' % outcome.token_count
    if outcome.truncated:
        tokens += b'"total_token_count":%d,' % outcome.total_token_count
    from runed.float_json import write_floats  # noqa: PLC0415 # imports NumPy

    return b'%b%b%b"embedding":%b' % (name, common, tokens, write_floats(outcome.vector))


def _error(reason: str, message: str) -> bytes:
    return b'"error":%b' % msgspec.json.encode({"reason": reason, "message": message})
