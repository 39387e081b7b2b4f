"""The input of a job: arguments, or files of lines, JSON lines, a JSON array, CSV, TSV or Parquet.

A job reads its input twice. The first reading checks and counts all texts, before any is embedded. So the user learns of a bad
line 90,000 in the first second. The second reading embeds text by text, so that no input is too large for the memory.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, cast

import msgspec

from runed.errors import EmptyTextError, InvalidRequestError, InvalidTextError, SettingsError
from runed.jobs import parquet
from runed.jobs.input_files import STANDARD_STREAM, InputFile, seekable
from runed.jobs.json_array import elements, is_array
from runed.jobs.json_lines import LineDecoder

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Bytes of the longest line, field or whole file, so that a file of another kind does not fill the memory."""

_PIECE = 1024 * 1024
"""Bytes of a line beyond the limit that are read at once."""

_SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Item:
    """A text to embed.

    Attributes:
        text: The text; empty if there is a problem with it.
        origin: The place of the text in the input, for error messages, as in "notes.txt, line 4".
        id: The caller's name of the text, as JSON, which the output repeats; empty if it has none.
        problem: The error of a text that plainly cannot be embedded, without asking the daemon. Its message begins with the
            origin.
    """

    text: str
    origin: str
    id: bytes = b""
    problem: InvalidRequestError | None = None


Source = Callable[[], Iterator[Item]]
"""A reader of the input. Each call yields all items from the start."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, or members of a JSON object, that are read.

    Attributes:
        text: The name of the column of the texts.
        id: The name of the column of the ids. None means "id" if there is such a column.
        delimiter: The character between two columns of a table of text. None means that of the format.
    """

    text: str = "text"
    id: str | None = None
    delimiter: str | None = None

    @property
    def id_or_default(self) -> str:
        """The name of the column of the ids, which need not exist; empty if the column "id" has the texts."""
        return self.id or ("id" if self.text != "id" else "")

    def places(self, name: str, header: Sequence[str], remedy: str = "") -> tuple[int, int | None]:
        """Return the positions of the columns of texts and ids in a table.

        Args:
            name: The name of the table in error messages.
            header: The names of its columns.
            remedy: The remedy if there is no such column, besides another name.

        Raises:
            SettingsError: A column does not exist, or there are several.
        """
        if not any(header):
            raise SettingsError(f"{name} names no columns; put a line with their names, such as {self.text}, at its start")
        for option, column in (("--text-column", self.text), ("--id-column", self.id)):
            if column is not None and column not in header:
                shown = ", ".join(f'"{other}"' for other in header[:_SHOWN_COLUMNS])
                raise SettingsError(f'{name} has no column "{column}", but {shown}; {remedy}name the right one by {option}')
        chosen = self.id_or_default
        for option, column in (("--text-column", self.text), ("--id-column", chosen)):
            if header.count(column) > 1:
                raise SettingsError(
                    f'{name} has {header.count(column)} columns "{column}"; rename all but one, or name another one by {option}'
                )
        return header.index(self.text), header.index(chosen) if chosen in header else None


@dataclass(frozen=True, slots=True)
class Batch:
    """A source that reads one file of any size; `open_batch` makes it.

    Attributes:
        file: The file.
        input_format: The format that the user chose, or None.
        columns: The columns that are read.
        by_name: The format that the name of the file tells; "" for an unknown extension.
    """

    file: InputFile
    input_format: str | None
    columns: Columns
    by_name: str

    def __call__(self) -> Iterator[Item]:
        """Yield the items of the file from its start."""
        return _from_file(self.file, self.input_format, self.columns, self.by_name)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Open the file at its start for a `with` block, and tell its format: one of `INPUT_FORMATS`, or "array"."""
        with self.file.open() as file:
            yield _chosen_format(self.file, self.input_format, self.by_name), file


def from_arguments(texts: Sequence[str]) -> Iterator[Item]:
    """Yield each argument as one text."""
    for position, text in enumerate(texts, start=1):
        # Python decodes bytes of the command line that are not UTF-8 to lone surrogates (PEP 383).
        yield _item(os.fsencode(text), f"argument {position}")


@contextlib.contextmanager
def open_files(paths: Sequence[str], *, whole: bool = False) -> Iterator[Source]:
    """Make a source of the texts of files, for the time of a `with` block.

    Nothing is opened before the source is read. Reading it raises `SettingsError` for a file that cannot be read, and
    `InvalidRequestError` for a file that is not text.

    Args:
        paths: The paths. Each may be "-" for standard input.
        whole: Whether each file is one text, whose id is the path of the file. Otherwise each line is one text.
    """
    read = _from_whole_file if whole else partial(_from_file, input_format="lines", columns=Columns())
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(contextlib.closing(InputFile(path))) for path in paths]
        yield lambda: chain.from_iterable(map(read, files))


@contextlib.contextmanager
def open_batch(
    path: str,
    input_format: str | None = None,
    columns: Columns | None = None,
    *,
    otherwise: str = "",
    name: str | None = None,
) -> Iterator[Batch]:
    """Make a source of the texts of one file of any size, for the time of a `with` block.

    Nothing is opened before the source is read. Reading it raises `SettingsError` for a file that cannot be read or lacks a
    column, and `InvalidRequestError` for a file of another format.

    Args:
        path: The path, or "-" for standard input.
        input_format: A key of `INPUT_FORMATS`. None recognizes Parquet by its content, and chooses another format by the
            extension. In front of ".gz" or ".zst", that is the one before. Without an extension, it is JSON lines.
        columns: The columns to read; None means the default ones.
        otherwise: The format of a file with an unknown extension, or without one; "" refuses the former.
        name: The name of the file in messages, which also has the extension; None means the path.
    """
    by_name = format_of(name or path) or otherwise or ("" if _extension(name or path) else "jsonl")
    with contextlib.closing(InputFile(path, name)) as file:
        yield Batch(file, input_format, columns or Columns(), by_name)


def format_of(path: str) -> str | None:
    """Return the format that the extension of a path tells; None for an unknown extension."""
    return EXTENSIONS.get(_extension(path))


def _extension(path: str) -> str:
    """Return the extension that tells the format, in small letters; "" for none."""
    *_, before, last = ["", "", *(suffix.lower() for suffix in Path(path).suffixes)]
    return before if last in _COMPRESSED else last


def _from_whole_file(source: InputFile) -> Iterator[Item]:
    with source.open() as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidRequestError(f"{source.name} has more than {MAX_TEXT_BYTES // 2**20} MiB, which is no text to embed")
    yield _item(data.removeprefix(codecs.BOM_UTF8), source.name, _id_of(source))


def _id_of(source: InputFile) -> bytes:
    """Return the path of a file as JSON, with a mark for each byte that is not UTF-8; nothing for standard input."""
    is_file = source.path != STANDARD_STREAM
    return msgspec.json.encode(os.fsencode(source.path).decode(errors="replace")) if is_file else b""


def _from_file(source: InputFile, input_format: str | None, columns: Columns, by_name: str = "") -> Iterator[Item]:
    with source.open() as file:
        chosen = _chosen_format(source, input_format, by_name)
        yield from _READERS[chosen](file, source.name, columns)


def _chosen_format(source: InputFile, input_format: str | None, by_name: str) -> str:
    """Return the format of an open file.

    Args:
        source: The file.
        input_format: The format that the user chose, or None.
        by_name: The format that its name tells; "" for a name with an unknown extension.

    Raises:
        InvalidRequestError: It is a Parquet file, and shall be read as another one.
        SettingsError: It has an unknown extension.
    """
    is_parquet = source.head.startswith(parquet.MAGIC)
    chosen = input_format or ("parquet" if is_parquet else by_name)
    if not chosen:
        raise SettingsError(
            f"{source.name}: no format has the extension {_extension(source.name)}; known are {', '.join(EXTENSIONS)}, also "
            f"followed by .gz or .zst; rename it, or choose by --input-format {', '.join(INPUT_FORMATS)}"
        )
    if is_parquet and chosen != "parquet":
        raise InvalidRequestError(f"{source.name} is a Parquet file; give it by --batch, without --input-format")
    return "array" if chosen in _JSON and is_array(source.head) else chosen


def _from_lines(file: IO[bytes], name: str, _columns: Columns) -> Iterator[Item]:
    for origin, line in lines(file, name):
        yield _item(line, origin) if isinstance(line, bytes) else _bad(origin, line)


def _from_json_lines(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    """Yield the texts of lines that are JSON strings, or JSON objects with a text and, optionally, an id."""
    return _from_json(lines(file, name), columns)


def _from_json_array(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    """Yield the texts of an array whose elements are as the lines of JSON lines."""
    return _from_json(array_elements(file, name), columns, "element")


def _from_json(
    records: Iterable[tuple[str, bytes | InvalidRequestError]], columns: Columns, what: str = "line"
) -> Iterator[Item]:
    decoder = LineDecoder(columns.text, columns.id_or_default, what)
    for origin, line in records:
        if not isinstance(line, bytes):
            yield _bad(origin, line)
            continue
        try:
            record = decoder.read(line)
        except InvalidRequestError as error:
            yield _bad(origin, type(error)(f"{origin}: {error}"))
        else:
            if record is not None:
                yield _checked(Item(record[0], origin, record[1]))


def _from_delimited(file: IO[bytes], name: str, columns: Columns, delimiter: str) -> Iterator[Item]:
    """Yield the texts of a column of a table with a header. Blank lines between the rows are ignored."""
    with contextlib.closing(delimited_rows(file, name, columns.delimiter or delimiter)) as rows:
        _, header = next(rows, ("", None))
        if header is not None:
            places = columns.places(name, header, _advice(header))
            for origin, row in rows:
                yield _from_row(row, origin, len(header), places)


def delimited_rows(file: IO[bytes], name: str, delimiter: str) -> Generator[tuple[str, list[str]]]:
    """Yield the header of a table and its rows that are not blank, each with its place.

    Columns that are not read may have bytes that are not UTF-8. They become lone surrogates.

    Args:
        file: The file, at its start.
        name: The name of the file in error messages.
        delimiter: The character between two columns.

    Raises:
        InvalidRequestError: It is no such table.
    """
    csv.field_size_limit(MAX_TEXT_BYTES)
    text = io.TextIOWrapper(cast("io.BufferedReader", file), encoding="utf-8-sig", errors="surrogateescape", newline="")
    # strict: otherwise a quote that is never closed turns the rest of the file into one text.
    reader = csv.reader(_bounded_lines(text, name), delimiter=delimiter, strict=True)
    line = 0
    try:
        for row in reader:
            origin = f"{name}, line {line + 1}"
            if row or not line:
                yield origin, row
            line = reader.line_num
    except csv.Error as error:
        raise InvalidRequestError(
            f"{name}, line {reader.line_num}: {error}; quotes must be closed, and doubled inside"
        ) from None
    finally:
        text.detach()  # otherwise the wrapper closes the file


def _from_row(row: Sequence[str], origin: str, width: int, places: tuple[int, int | None]) -> Item:
    if len(row) != width:
        problem = f"{origin} has {len(row)} columns instead of {width}; a text that holds a separator needs quotes"
        return _bad(origin, InvalidRequestError(problem))
    text_place, id_place = places
    try:
        name_of_it = b"" if id_place is None else msgspec.json.encode(row[id_place])
        row[text_place].encode()
    except UnicodeEncodeError:
        return _bad(origin, InvalidTextError(f"{origin} is not valid UTF-8; convert it, for example with iconv"))
    return _checked(Item(row[text_place], origin, name_of_it))


def _advice(header: Sequence[str]) -> str:
    """Return a remedy for a table that was split at the wrong character, or nothing."""
    if len(header) == 1 and (found := next((char for char in ";\t|," if char in header[0]), None)):
        shown = {"\t": "tab"}.get(found, f'"{found}"')
        return f"its columns seem to be separated by {shown}: add `--delimiter {shown}`, or "
    return ""


def _from_parquet(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    with seekable(file) as table:
        places = columns.places(name, parquet.column_names(table, name))
        for number, (data, value) in enumerate(parquet.read_columns(table, name, *places), start=1):
            origin = f"{name}, row {number}"
            if isinstance(value, str):
                yield _bad(origin, InvalidRequestError(f"{origin}: {value}"))
            else:
                yield _item(data, origin, value)


INPUT_FORMATS: dict[str, Callable[[IO[bytes], str, Columns], Iterator[Item]]] = {
    "lines": _from_lines,
    "jsonl": _from_json_lines,
    "json": _from_json_lines,
    "csv": partial(_from_delimited, delimiter=","),
    "tsv": partial(_from_delimited, delimiter="\t"),
    "parquet": _from_parquet,
}
"""The reader of each format that a user can choose: it takes the file, its name in error messages and the columns, and yields
the items."""

_READERS = INPUT_FORMATS | {"array": _from_json_array}

_JSON = ("json", "jsonl")
"""Formats whose file may be one array."""

EXTENSIONS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""The format that each extension tells. One of `_COMPRESSED` may follow it."""

_COMPRESSED = (".gz", ".gzip", ".zst", ".zstd")


def lines(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes | InvalidRequestError]]:
    """Yield origin and bytes of every line, or an error for a line that is too long.

    Only LF and CR LF end a line, since a text may contain other separators.
    """
    number = 0
    while line := file.readline(MAX_TEXT_BYTES + 1):
        number += 1
        if number == 1 and not (line := line.removeprefix(codecs.BOM_UTF8)):
            break
        if len(line) > MAX_TEXT_BYTES:
            yield f"{name}, line {number}", _no_lines(name, number)
            while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
                pass
        else:
            yield f"{name}, line {number}", line.removesuffix(b"\n").removesuffix(b"\r")


def array_elements(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Yield place and bytes of every element of a JSON array.

    Raises:
        InvalidRequestError: It is no whole array.
    """
    number = 0
    try:
        for number, element in enumerate(elements(file, MAX_TEXT_BYTES), start=1):  # for the error
            yield f"{name}, element {number}", element
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}, after {number:,} elements: {error}") from None


def _bounded_lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_TEXT_BYTES + 1):
        number += 1
        if len(line) > MAX_TEXT_BYTES:
            raise _no_lines(name, number)
        yield line


def _no_lines(name: str, number: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name}, line {number} does not end within {MAX_TEXT_BYTES // 2**20} MiB; is it a file of lines?"
    )


def _item(data: bytes, origin: str, name: bytes = b"") -> Item:
    try:
        return _checked(Item(data.decode(), origin, name))
    except UnicodeDecodeError as error:
        return _bad(origin, _not_utf8(origin, error), name)


def _not_utf8(origin: str, error: UnicodeDecodeError) -> InvalidTextError:
    return InvalidTextError(f"{origin}: byte {error.start} of it is not valid UTF-8; convert it, for example with iconv")


def _checked(item: Item) -> Item:
    """Find the problems that the daemon would find, so that a blank line does not end a job after an hour of work."""
    if not item.text or item.text.isspace():
        problem = f"{item.origin} is empty or only white space, so that its vector would mean nothing; leave it out"
        return _bad(item.origin, EmptyTextError(problem), item.id)
    if "\0" in item.text:
        problem = f"{item.origin}: the text has a NUL character; remove it, or check that this is text"
        return _bad(item.origin, InvalidTextError(problem), item.id)
    return item


def _bad(origin: str, problem: InvalidRequestError, name: bytes = b"") -> Item:
    return Item("", origin, name, problem)
