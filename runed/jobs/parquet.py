"""Parquet in and out, by pyarrow: an optional extra, since it has ten times the size of runed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec
import numpy as np

from runed.errors import InvalidRequestError, SettingsError

_READ_ROWS = 1024
"""Rows that are in memory at once while a file is read."""

_READ_BUFFER = 1024 * 1024
"""Bytes that are read at once of each column, instead of all of it within a row group."""

_GROUP_ROWS = 8192
_GROUP_BYTES = 16 * 1024 * 1024
"""Rows, and bytes of vectors, that one row group of a written file holds; so much is in memory at once."""


def pyarrow(module: str = "pyarrow") -> Any:  # noqa: ANN401 # pyarrow has no type information
    """Give pyarrow or a module of it.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SettingsError(
            "Parquet needs pyarrow, which is not installed; run `pip install 'runed[parquet]'`, or use another format"
        ) from None


def column_names(file: IO[bytes], name: str) -> list[str]:
    """Give the names of the columns of a Parquet file.

    Args:
        file: The file, seekable.
        name: What it is called in an error.

    Raises:
        InvalidRequestError: It is no Parquet file.
        SettingsError: There is no pyarrow.
    """
    names: list[str] = _open(file, name).schema_arrow.names
    return names


def read_columns(file: IO[bytes], name: str, columns: Sequence[str]) -> Iterator[tuple[bytes, object]]:
    """Give the rows of a Parquet file, a bounded number of them in memory at once.

    Args:
        file: The file, seekable.
        name: What it is called in an error.
        columns: The names of the column of texts and, optionally, of one of other values.

    Yields:
        The text as UTF-8, empty where it is null, and the other value as Python has it, or None.

    Raises:
        InvalidRequestError: The column of texts has something else, or the file is damaged.
    """
    arrow = pyarrow()
    table = _open(file, name)
    text_type = table.schema_arrow.field(columns[0]).type
    if arrow.types.is_dictionary(text_type):
        text_type = text_type.value_type
    if not (arrow.types.is_string(text_type) or arrow.types.is_large_string(text_type)):
        raise InvalidRequestError(f'{name}: the column "{columns[0]}" holds {text_type} instead of strings')
    try:
        for batch in table.iter_batches(_READ_ROWS, columns=list(columns), use_threads=False):
            # As bytes, since a string that is no UTF-8 must not hide which row it is in.
            texts = batch.column(columns[0]).cast(arrow.string()).cast(arrow.binary()).to_pylist()
            values = batch.column(columns[1]).to_pylist() if len(columns) > 1 else [None] * len(texts)
            for text, value in zip(texts, values, strict=True):
                yield text or b"", value
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _open(file: IO[bytes], name: str) -> Any:  # noqa: ANN401 # as above
    arrow = pyarrow()
    try:
        return pyarrow("pyarrow.parquet").ParquetFile(file, buffer_size=_READ_BUFFER)
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"{name} cannot be read as Parquet: {type(error).__name__}; is it complete, and of that format?")


class Schema:
    """The table of a job's vectors.

    Columns are `index`, `id` (a string: the id if it is one, else its JSON), `token_count`, `error` and `embedding`, a list of
    `dim` float32. A text without a vector has null for token count and embedding, and the error instead. What holds for the
    whole file is in its metadata, under "runed.fingerprint" and "runed.model_identity".

    Args:
        dim: The number of values of a vector.
        metadata: What is written beside the table.
    """

    def __init__(self, dim: int, metadata: dict[str, str]) -> None:
        self._arrow = pyarrow()
        self._dim = dim
        self._schema = self._arrow.schema(
            {
                "index": self._arrow.int64(),
                "id": self._arrow.string(),
                "token_count": self._arrow.int32(),
                "error": self._arrow.string(),
                "embedding": self._arrow.list_(self._arrow.float32(), dim),
            },
            metadata=metadata,
        )

    def head(self) -> bytes:
        """Give the beginning of an Arrow stream, which rows can be appended to at any time, as they cannot to Parquet."""
        head: bytes = self._schema.serialize().to_pybytes()
        return head

    def rows(
        self,
        indices: Sequence[int],
        ids: Sequence[bytes],
        token_counts: Sequence[int | None],
        errors: Sequence[str | None],
        vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]] | None],
    ) -> bytes:
        """Give rows as a part of an Arrow stream; all arguments have one entry a row, ids as JSON."""
        arrow = self._arrow
        values = np.zeros((len(vectors), self._dim), dtype=np.float32)
        for row, vector in enumerate(vectors):
            if vector is not None:
                values[row] = vector
        missing = arrow.array([vector is None for vector in vectors], arrow.bool_())
        type_ = self._schema.field("embedding").type
        embeddings = arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), type=type_, mask=missing)
        columns = [
            arrow.array(indices, arrow.int64()),
            arrow.array([_name(value) for value in ids], arrow.string()),
            arrow.array(token_counts, arrow.int32()),
            arrow.array(errors, arrow.string()),
            embeddings,
        ]
        part: bytes = arrow.record_batch(columns, schema=self._schema).serialize().to_pybytes()
        return part

    def convert(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Write a whole Arrow stream as Parquet, the same bytes however its rows came into the stream.

        Args:
            source: The stream, at its start.
            target: Where to; need not be seekable.
        """
        parquet = pyarrow("pyarrow.parquet")
        group = min(_GROUP_ROWS, max(1, _GROUP_BYTES // (4 * self._dim)))
        options = {"use_dictionary": False, "write_statistics": ["index"]}
        with parquet.ParquetWriter(target, self._schema, **options) as writer:
            waiting: list[Any] = []
            rows = 0
            for batch in self._arrow.ipc.open_stream(source):
                waiting.append(batch)
                rows += batch.num_rows
                while rows >= group:
                    table = self._arrow.Table.from_batches(waiting, self._schema)
                    writer.write_table(table.slice(0, group).combine_chunks(), row_group_size=group)
                    waiting = table.slice(group).to_batches()
                    rows -= group
            if rows:
                writer.write_table(self._arrow.Table.from_batches(waiting, self._schema).combine_chunks(), row_group_size=group)


def _name(value: bytes) -> str | None:
    if not value:
        return None
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, str) else None if decoded is None else value.decode()
