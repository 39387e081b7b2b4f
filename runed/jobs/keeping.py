"""The columns of a job's input that its output keeps beside the vectors."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import IO, Any

import msgspec

from runed.errors import SettingsError
from runed.jobs import parquet
from runed.jobs.input_files import seekable
from runed.jobs.inputs import Batch, array_elements, delimited_rows, lines
from runed.jobs.json_lines import is_blank, members
from runed.jobs.parquet import Kept, text_of_json
from runed.suggesting import did_you_mean

ALL = "all"
"""The word for all columns."""

_ROWS = 1024
"""Rows of one batch."""

_SHOWN = 20
"""The most columns that an error names."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
"""The usual delimiters of tables of text."""


def kept_columns(source: Batch, names: Sequence[str]) -> Kept:
    """Return the columns of an input that its output keeps. A Parquet file gives them their types; others are texts.

    Args:
        source: The input.
        names: The names of the columns; "all" means all that the output does not have already.

    Raises:
        SettingsError: The input has no such column, or the output has one of that name; or pyarrow is not installed.
        InvalidRequestError: The input cannot be read.
    """
    arrow = parquet.pyarrow()
    with source.opened() as (form, file):
        if form == "parquet":
            with seekable(file) as table:
                schema = parquet.schema_of(table, source.file.name)
        else:
            schema = arrow.schema([(name, arrow.string()) for name in _names(source, form, file)])
    chosen = _chosen(source, schema.names, names)
    schema = arrow.schema([schema.field(name) for name in chosen])

    def batches() -> Iterator[Any]:
        with source.opened() as (form, file):
            if form == "parquet":
                with seekable(file) as table:
                    yield from parquet.read_batches(table, source.file.name, chosen)
                return
            rows = _rows(source, form, file)
            while group := list(islice(rows, _ROWS)):
                columns = [arrow.array([row.get(name) for row in group], arrow.string()) for name in chosen]
                yield arrow.record_batch(columns, schema=schema)

    return Kept(schema, batches)


def _chosen(source: Batch, there: list[str], names: Sequence[str]) -> list[str]:
    """Return the names of the columns to keep, in the order of the input or of the user."""
    id_column = source.columns.id_or_default
    own = {"id"} if id_column == "id" else set()  # the output has it already
    chosen = [name for name in there if name not in own] if ALL in names else list(dict.fromkeys(names))
    for name in chosen:
        if name not in there:
            shown = did_you_mean(name, there) or f", but {', '.join(there[:_SHOWN])}"
            raise SettingsError(f'--keep: {source.file.name} has no column "{name}"{shown}')
        if name in parquet.COLUMNS:
            raise SettingsError(
                f'--keep: the output has a column "{name}" of its own; rename that of the input, or name the other columns'
            )
        if there.count(name) > 1:
            raise SettingsError(f'--keep: {source.file.name} has {there.count(name)} columns "{name}"; rename all but one')
    return chosen


def _names(source: Batch, form: str, file: IO[bytes]) -> list[str]:
    """Return the names of all columns. Objects of JSON may each have others."""
    if form in _DELIMITERS:
        with closing(_cells(source, form, file)) as cells:
            return next(cells, [])
    return list(dict.fromkeys(name for row in _rows(source, form, file) for name in row))


def _rows(source: Batch, form: str, file: IO[bytes]) -> Iterator[Mapping[str, str | None]]:
    """Yield the columns of each text; those of a row that cannot be read are missing."""
    if form in _DELIMITERS:
        with closing(_cells(source, form, file)) as cells:
            header = next(cells, [])
            yield from (dict(zip(header, row, strict=True)) if len(row) == len(header) else {} for row in cells)
    elif form in {"json", "jsonl", "array"}:
        read = array_elements if form == "array" else lines
        for _, line in read(file, source.file.name):
            if not isinstance(line, bytes):
                yield {}
            elif not is_blank(line):
                yield {name: _text(value) for name, value in members(line).items()}
    else:
        raise SettingsError(f"{source.file.name} has no columns to keep; leave --keep out")


def _cells(source: Batch, form: str, file: IO[bytes]) -> Generator[list[str]]:
    """Yield the header and the rows of a table of text. Bytes that are not UTF-8 are replaced."""
    with closing(delimited_rows(file, source.file.name, source.columns.delimiter or _DELIMITERS[form])) as rows:
        for _, row in rows:
            yield [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in row]


def _text(value: bytes) -> str | None:
    """Return a value of JSON as a text. What is not Unicode is shown as it stands there."""
    try:
        return text_of_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return value.decode("utf-8", "replace")
