"""How vectors are written: JSON, JSON lines, a NumPy array or Parquet; whole, or recognizably not at all."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from runed.cli.boundary import error_document
from runed.errors import RunedError
from runed.jobs import parquet

if TYPE_CHECKING:
    from runed.client.types import Embedding


class Space(msgspec.Struct, frozen=True):
    """What holds for all vectors of a job.

    Attributes:
        fingerprint: Names the space that they lie in.
        model_identity: Names the model's file.
        dim: The number of values of each.
    """

    fingerprint: str
    model_identity: str
    dim: int


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one text.

    Attributes:
        index: Its position in the input, from 0.
        id: The caller's own name of it, as JSON; empty if there is none.
        origin: Where it stands in the input, for errors.
        inputs: Stands for all texts and ids up to and with this one, see `runed.jobs.ordering.link`.
        outcome: Its vector, or why there is none.
    """

    index: int
    id: bytes
    origin: str
    inputs: bytes
    outcome: Embedding | RunedError


class Encoder(ABC):
    """Gives the vectors of a job as bytes that only need to be put one after another.

    What it gives for a row depends on nothing that came before, so that a job can be interrupted after any row.

    Args:
        space: What holds for all vectors.
        count: The number of rows that there will be.
    """

    convert: Callable[[IO[bytes], IO[bytes]], None] | None = None
    """If set, what was put together is not the output yet: this makes the output of it, from a file to a file."""

    def __init__(self, space: Space, count: int) -> None:
        self._space = space
        self._count = count

    def head(self) -> bytes:
        """Give what comes before the first row; the same length for each count."""
        return b""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> bytes:
        """Give the next rows."""

    def tail(self) -> bytes:
        """Give what comes after the last row."""
        return b""

    def failure(self, _reason: str, _message: str, /) -> bytes:
        """Give what keeps incomplete output from being taken for complete; by default nothing is needed for that."""
        return b""


class JsonEncoder(Encoder):
    """One document: `{"model_identity": ..., "fingerprint": ..., "dim": ..., "embeddings": [{"index": ..., ...}, ...]}`."""

    def head(self) -> bytes:
        """Open the document."""
        return b'{"model_identity":%b,"fingerprint":%b,"dim":%d,"embeddings":[' % (
            msgspec.json.encode(self._space.model_identity),
            msgspec.json.encode(self._space.fingerprint),
            self._space.dim,
        )

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Give the next elements."""
        return b"".join(b"%b\n{%b}" % (b"," if row.index else b"", _members(row, b"")) for row in rows)

    def tail(self) -> bytes:
        """Close the document; until then it does not parse."""
        return b"\n]}\n"


class JsonLinesEncoder(Encoder):
    """One object a line, each of use without the others: `{"index": ..., "model_identity": ..., "embedding": [...]}`."""

    def __init__(self, space: Space, count: int) -> None:
        super().__init__(space, count)
        identity, fingerprint = msgspec.json.encode(space.model_identity), msgspec.json.encode(space.fingerprint)
        self._common = b'"model_identity":%b,"fingerprint":%b,' % (identity, fingerprint)

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Give the next lines."""
        return b"".join(b"{%b}\n" % _members(row, self._common) for row in rows)

    def failure(self, reason: str, message: str, /) -> bytes:
        """Give a last line without an index, since nothing else about lines shows that some are missing."""
        return error_document(reason, message)


class NpyEncoder(Encoder):
    """A NumPy array of float32 with shape (count, dim); its header tells the shape, so `numpy.load` refuses a shorter file.

    The row of a text without a vector is NaN.
    """

    def head(self) -> bytes:
        """Give the header, in which NumPy leaves room for any count."""
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._space.dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Give the next rows."""
        values = np.full((len(rows), self._space.dim), np.nan, dtype="<f4")
        for position, row in enumerate(rows):
            if not isinstance(row.outcome, RunedError):
                values[position] = row.outcome.vector
        return values.tobytes()


class ParquetEncoder(Encoder):
    """A table with a row a text, see `runed.jobs.parquet.Schema`; until the job is done, the rows are an Arrow stream."""

    def __init__(self, space: Space, count: int) -> None:
        super().__init__(space, count)
        metadata = {"runed.fingerprint": space.fingerprint, "runed.model_identity": space.model_identity}
        self._schema = parquet.Schema(space.dim, metadata)
        self.convert = self._schema.convert

    def head(self) -> bytes:
        """Give the schema."""
        return self._schema.head()

    def rows(self, rows: Sequence[Row]) -> bytes:
        """Give the next rows."""
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
"""The formats by name, which is the usual file name extension too."""

BINARY = ("npy", "parquet")
"""The formats that a terminal cannot show."""


def _members(row: Row, common: bytes) -> bytes:
    """Give a row as the members of a JSON object, with what is common to all vectors after its index and id."""
    name = b'"index":%d,"id":%b,' % (row.index, row.id) if row.id else b'"index":%d,' % row.index
    outcome = row.outcome
    if isinstance(outcome, RunedError):
        error = msgspec.json.encode({"reason": outcome.reason, "message": outcome.message})
        return b'%b"error":%b' % (name, error)
    tokens = b'"token_count":%d,' % outcome.token_count
    if outcome.truncated:
        tokens += b'"total_token_count":%d,' % outcome.total_token_count
    return b'%b%b%b"embedding":%b' % (name, common, tokens, _numbers(outcome.vector))


def _numbers(vector: NDArray[np.float32]) -> bytes:
    """Give a vector as a JSON array of the shortest decimals that read back as the same float32."""
    return b"[%b]" % ",".join(vector.astype("U").tolist()).encode()
