"""Parquet files as input and output, and the arrays in them.

They need pyarrow, an optional extra, since it is ten times as large as runed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import msgspec

from runed.errors import InvalidRequestError, RunedError, SettingsError
from runed.extras import install_command

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"PAR1\x15"
"""The first bytes of a Parquet file: its mark, and the beginning of the first page or of the description."""

COLUMNS = ("index", "id", "token_count", "error", "embedding")
"""The columns of a table of vectors; see `Schema`."""

_READ_ROWS = 1024
"""Rows of an input file that are in memory at once."""

_READ_BUFFER = 1024 * 1024
"""Bytes of a column that are read at once. The default of pyarrow is the whole column of a row group."""

_GROUP_ROWS = 8192
_GROUP_BYTES = 16 * 1024 * 1024
"""Rows, and bytes of vectors, of one row group of an output file. One row group is in memory at once."""


def pyarrow(module: str = "pyarrow") -> Any:  # noqa: ANN401 # pyarrow has no type information
    """Import pyarrow or a module of it.

    Raises:
        SettingsError: pyarrow is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SettingsError(
            f"Parquet files and URLs need pyarrow, which is not installed; run `{install_command('parquet')}`, "
            "or name files of another format on this machine"
        ) from None


def column_names(file: IO[bytes], name: str) -> list[str]:
    """Return the names of the columns of a Parquet file.

    Args:
        file: The file, seekable.
        name: The name of the file in error messages.

    Raises:
        InvalidRequestError: The file is no Parquet file.
        SettingsError: pyarrow is not installed.
    """
    names: list[str] = _open(file, name).schema_arrow.names
    return names


def read_columns(file: IO[bytes], name: str, text: int, id_: int | None) -> Iterator[tuple[bytes, bytes | str]]:
    """Read the rows of a Parquet file, with a bounded number of them in memory at once.

    Args:
        file: The file, seekable.
        name: The name of the file in error messages.
        text: The position of the column of texts.
        id_: The position of the column of ids, or None.

    Yields:
        The text as UTF-8, empty where it is null. Then its id as JSON, empty where it is null; or, as a string, the reason why
        the id cannot be used.

    Raises:
        InvalidRequestError: A column has the wrong type, or the file is damaged.
    """
    arrow = pyarrow()
    table = _open(file, name)
    fields = [table.schema_arrow.field(place) for place in (text, id_) if place is not None]
    if not is_text(fields[0].type):
        raise InvalidRequestError(f'{name}: the column "{fields[0].name}" holds {fields[0].type} instead of strings')
    try:
        for batch in table.iter_batches(_READ_ROWS, columns=[field.name for field in fields], use_threads=False):
            # As bytes, since a decoding error of pyarrow does not tell the row.
            texts = texts_of(batch.column(fields[0].name))
            ids = _ids(batch.column(fields[1].name)) if len(fields) > 1 else [b""] * len(texts)
            for data, value in zip(texts, ids, strict=True):
                yield data or b"", value
    except _NoIdError:
        raise InvalidRequestError(
            f'{name}: the column "{fields[1].name}" holds {fields[1].type}, which is no id; name another one by --id-column'
        ) from None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(name, error) from None


def schema_of(file: IO[bytes], name: str) -> Any:  # noqa: ANN401 # as above
    """Return the Arrow schema of a Parquet file. Arguments and errors are those of `column_names`."""
    return _open(file, name).schema_arrow


def read_batches(file: IO[bytes], name: str, columns: list[str]) -> Iterator[Any]:
    """Read columns of a Parquet file as Arrow record batches, with a bounded number of rows in memory at once.

    Raises:
        InvalidRequestError: The file is damaged.
    """
    try:
        yield from _open(file, name).iter_batches(_READ_ROWS, columns=columns, use_threads=False)
    except (pyarrow().ArrowException, OSError) as error:
        raise _damaged(name, error) from None


@dataclass(frozen=True, slots=True)
class Kept:
    """Columns of a job's input that its output keeps.

    Attributes:
        schema: Their Arrow schema.
        batches: Yields their rows, in the order of the texts, as Arrow record batches. Each call begins at the first one.
    """

    schema: Any
    batches: Callable[[], Iterator[Any]]


class _NoIdError(Exception):
    """The values of a column cannot be written as JSON."""


def is_text(type_: Any) -> bool:  # noqa: ANN401 # as above
    """Return whether a column has strings. Some programs write these as binary values."""
    types = pyarrow().types
    if types.is_dictionary(type_):
        type_ = type_.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(type_) for test in (*tests, types.is_binary, types.is_large_binary, types.is_binary_view))


def texts_of(column: Any) -> list[bytes | None]:  # noqa: ANN401 # as above
    """Return the values of a column of texts, see `is_text`, as UTF-8, and None where they are null."""
    values: list[bytes | None] = _decoded(column).cast(pyarrow().large_binary()).to_pylist()
    return values


def vectors_array(vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]] | None], dim: int) -> Any:  # noqa: ANN401 # as above
    """Return vectors as an Arrow array of lists of `dim` float32, with null for None."""
    import numpy as np  # noqa: PLC0415 # 60 ms that `runed embed --help` does not spend

    arrow = pyarrow()
    values = np.zeros((len(vectors), dim), dtype=np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            values[row] = vector
    missing = arrow.array([vector is None for vector in vectors], arrow.bool_())
    type_ = arrow.list_(arrow.float32(), dim)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), type=type_, mask=missing)


def _decoded(column: Any) -> Any:  # noqa: ANN401 # as above
    return column.cast(column.type.value_type) if pyarrow().types.is_dictionary(column.type) else column


def _ids(column: Any) -> Iterator[bytes | str]:  # noqa: ANN401 # as above
    """Yield each value of a column as JSON, or the reason why it cannot be an id."""
    column = _decoded(column)
    # With pandas, pyarrow returns its times, which lose their nanoseconds in JSON.
    exact = getattr(column.type, "unit", "") == "ns"
    try:
        values = column if exact else column.to_pylist()
    except (ValueError, OverflowError):
        values = column
    for value in values:
        yield _as_json(value) if values is not column else _scalar_as_json(value, exact=exact)


def _scalar_as_json(scalar: Any, *, exact: bool) -> bytes | str:  # noqa: ANN401 # as above
    """Return a value as JSON: in words if Python has no object for it, such as a year after 9999, or nanoseconds."""
    try:
        if not exact:
            return _as_json(scalar.as_py())
    except UnicodeDecodeError:
        return "its id is not valid UTF-8; convert it"
    except (ValueError, OverflowError):
        pass
    if not scalar.is_valid:
        return b""
    try:
        words = scalar.cast(pyarrow().string()).as_py()
    except pyarrow().ArrowException:
        raise _NoIdError from None
    if not words.lstrip("-")[:1].isdigit() or words.lstrip("-").isdigit():  # out of Arrow's range, or a duration
        words = f"{scalar.value} {getattr(scalar.type, 'unit', 'd')}"
    return _as_json(words.replace(" ", "T", 1) if ":" in words else words)


def _as_json(value: object) -> bytes | str:
    if value is None:
        return b""
    try:
        # msgspec writes NaN as null.
        json.dumps(value, allow_nan=False, default=str)
        return msgspec.json.encode(value)
    except ValueError:
        return "its id is or holds NaN or Infinity, which JSON does not have; change it"
    except (TypeError, OverflowError):
        raise _NoIdError from None


def _open(file: IO[bytes], name: str) -> Any:  # noqa: ANN401 # as above
    arrow = pyarrow()
    try:
        return pyarrow("pyarrow.parquet").ParquetFile(file, buffer_size=_READ_BUFFER)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"{name} cannot be read as Parquet: {type(error).__name__}; is it complete, and of that format?")


class Schema:
    """The table of a job's vectors.

    The columns are `index`, `id`, `token_count`, `error` and `embedding`. The id is a string: the id itself if it is a string,
    else its JSON. The embedding is a list of `dim` float32. A text without a vector has an error, and null as token count and
    embedding.

    Args:
        dim: The number of values of a vector.
        metadata: The metadata of the file.
        kept: Columns of the input that follow these; None for none.
    """

    def __init__(self, dim: int, metadata: dict[str, str], kept: Kept | None = None) -> None:
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
        # Batches without a column have no rows, as the elements of an array of strings have no members.
        self._kept = kept if kept and kept.schema.names else None
        self._whole = self._schema
        for field in self._kept.schema if self._kept else ():
            self._whole = self._whole.append(field)

    def head(self) -> bytes:
        """Return the beginning of an Arrow stream. Rows can be appended to it at any time, which Parquet does not allow."""
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
        """Return rows as a part of an Arrow stream. All arguments have one entry a row; ids are JSON."""
        arrow = self._arrow
        columns = [
            arrow.array(indices, arrow.int64()),
            arrow.array([text_of_json(value) for value in ids], arrow.string()),
            arrow.array(token_counts, arrow.int32()),
            arrow.array(errors, arrow.string()),
            vectors_array(vectors, self._dim),
        ]
        part: bytes = arrow.record_batch(columns, schema=self._schema).serialize().to_pybytes()
        return part

    def convert(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Write a whole Arrow stream as Parquet. The bytes do not depend on how the rows were split into parts.

        Args:
            source: The file with the stream, at its start.
            target: The file for the Parquet; need not be seekable.
        """
        parquet = pyarrow("pyarrow.parquet")
        group = min(_GROUP_ROWS, max(1, _GROUP_BYTES // (4 * self._dim)))
        kept = _Taking(self._kept) if self._kept else None
        options = {"use_dictionary": self._kept.schema.names if self._kept else False, "write_statistics": ["index"]}

        def write(table: Any) -> None:  # noqa: ANN401 # as above
            table = table.combine_chunks()
            for field, column in kept.next(table.num_rows) if kept else ():
                table = table.append_column(field, column)
            writer.write_table(table, row_group_size=group)

        with parquet.ParquetWriter(target, self._whole, **options) as writer:
            waiting: list[Any] = []
            rows = 0
            for batch in self._arrow.ipc.open_stream(source):
                waiting.append(batch)
                rows += batch.num_rows
                while rows >= group:
                    table = self._arrow.Table.from_batches(waiting, self._schema)
                    write(table.slice(0, group))
                    waiting = table.slice(group).to_batches()
                    rows -= group
            if rows:
                write(self._arrow.Table.from_batches(waiting, self._schema))


class _Taking:
    """Takes the rows of kept columns, so many at a time."""

    def __init__(self, kept: Kept) -> None:
        self._schema = kept.schema
        self._batches = kept.batches()
        self._waiting: list[Any] = []

    def next(self, count: int) -> Iterator[tuple[Any, Any]]:
        """Return each field with its column of the next rows."""
        while sum(batch.num_rows for batch in self._waiting) < count:
            if (batch := next(self._batches, None)) is None:
                raise RunedError("the input was changed while it was read; do so when nobody writes to it")
            self._waiting.append(batch)
        table = pyarrow().Table.from_batches(self._waiting, self._schema)
        self._waiting = table.slice(count).to_batches()
        return zip(self._schema, table.slice(0, count).columns, strict=True)


def text_of_json(value: bytes) -> str | None:
    """Return a value of JSON as a text: a string itself, None for null or nothing, and any other value as JSON."""
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return None if value in (b"", b"null") else value.decode()
