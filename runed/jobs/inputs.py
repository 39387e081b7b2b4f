"""The input of a job: arguments, or files of lines, JSON lines, CSV, TSV or Parquet.

A job reads its input twice. The first reading checks and counts all texts, before any is embedded. So the user learns of a bad
line 90,000 in the first second. The second reading embeds text by text, so that no input is too large for the memory.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from runed.errors import EmptyTextError, InvalidRequestError, InvalidTextError, SettingsError
from runed.jobs import parquet

STANDARD_STREAM = "-"
"""The name of standard input, or of standard output, in the place of a file's path."""

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Bytes of the longest line, field or whole file, so that a file of another kind does not fill the memory."""

_SPOOLED_BYTES = 1024 * 1024
"""Bytes of a pipe that are kept in memory. A longer one is copied to a temporary file."""

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
    """

    text: str = "text"
    id: str | None = None

    @property
    def id_or_default(self) -> str:
        """The name of the column of the ids, which need not exist; empty if the column "id" has the texts."""
        return self.id or ("id" if self.text != "id" else "")

    def places(self, name: str, header: Sequence[str]) -> tuple[int, int | None]:
        """Return the positions of the columns of texts and ids in a table.

        Args:
            name: The name of the table in error messages.
            header: The names of its columns.

        Raises:
            SettingsError: A column does not exist.
        """
        for option, column in (("--text-column", self.text), ("--id-column", self.id)):
            if column is not None and column not in header:
                shown = ", ".join(f'"{other}"' for other in header[:_SHOWN_COLUMNS])
                raise SettingsError(f'{name} has no column "{column}", but {shown}; name the right one by {option}')
        chosen = self.id_or_default
        return header.index(self.text), header.index(chosen) if chosen in header else None


class InputFile:
    """A file, a pipe or standard input that can be read any number of times.

    Args:
        path: The path, or "-" for standard input.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.name = "standard input" if path == STANDARD_STREAM else path
        self._spool: IO[bytes] | None = None
        self._offset: int | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file at its start. A pipe is first copied to a temporary file, since it can be read only once.

        Raises:
            SettingsError: The file cannot be read.
        """
        if self._spool is None:
            try:
                file = self._open()
            except OSError as error:
                raise SettingsError(f"{self.name} cannot be read: {error.strerror}") from None
            with file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    yield file
                    return
                spool = cast("IO[bytes]", tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))  # noqa: SIM115 # closed by `close`
                shutil.copyfileobj(file, spool)
                self._spool = spool
        self._spool.seek(0)
        yield self._spool

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._spool is not None:
            self._spool.close()

    def _open(self) -> IO[bytes]:
        if self._path != STANDARD_STREAM:
            return open(self._path, "rb")  # noqa: PTH123 # also reads /dev/fd/63, which a shell passes for <(command)
        if sys.stdin is None:
            return open(os.devnull, "rb")  # noqa: PTH123 # as above
        file = open(os.dup(sys.stdin.fileno()), "rb")  # noqa: PTH123, SIM115 # a descriptor has no path; `open` closes it
        if file.seekable():
            # The shell may have read a part of the file. So the start is the position at the first opening.
            self._offset = file.tell() if self._offset is None else file.seek(self._offset)
        return file


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
        whole: Whether each file is one text. Otherwise each line is one text.
    """
    read = _from_whole_file if whole else partial(_from_file, input_format="lines", columns=Columns())
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(contextlib.closing(InputFile(path))) for path in paths]
        yield lambda: chain.from_iterable(map(read, files))


@contextlib.contextmanager
def open_batch(path: str, input_format: str | None = None, columns: Columns | None = None) -> Iterator[Source]:
    """Make a source of the texts of one file of any size, for the time of a `with` block.

    Nothing is opened before the source is read. Reading it raises `SettingsError` for a file that cannot be read or lacks a
    column, and `InvalidRequestError` for a file of another format.

    Args:
        path: The path, or "-" for standard input.
        input_format: A key of `INPUT_FORMATS`. None chooses by the file's extension, and JSON lines for an unknown one.
        columns: The columns to read; None means the default ones.
    """
    chosen = input_format or _EXTENSIONS.get(Path(path).suffix.lower(), "jsonl")
    with contextlib.closing(InputFile(path)) as file:
        yield lambda: _from_file(file, chosen, columns or Columns())


def _from_whole_file(source: InputFile) -> Iterator[Item]:
    with source.open() as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidRequestError(f"{source.name} has more than {MAX_TEXT_BYTES // 2**20} MiB, which is no text to embed")
    yield _item(data.removeprefix(codecs.BOM_UTF8), source.name)


def _from_file(source: InputFile, input_format: str, columns: Columns) -> Iterator[Item]:
    with source.open() as file:
        yield from INPUT_FORMATS[input_format](file, source.name, columns)


def _from_lines(file: IO[bytes], name: str, _columns: Columns) -> Iterator[Item]:
    for origin, line in _lines(file, name):
        yield _item(line, origin)


def _from_json_lines(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    """Yield the texts of lines that are JSON strings, or JSON objects with a text and, optionally, an id."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("text", str)]
    if columns.id_or_default:
        fields.append(("id", msgspec.Raw, msgspec.Raw(b"")))
    line_type = msgspec.defstruct("Line", fields, rename={"text": columns.text, "id": columns.id_or_default})
    decoder = msgspec.json.Decoder(str | line_type)
    for origin, line in _lines(file, name):
        try:
            record = decoder.decode(line)
        except UnicodeDecodeError as error:
            yield _bad(origin, _not_utf8(origin, error))
        except msgspec.DecodeError as error:
            example = f'{{"id": 1, "{columns.text}": "..."}}'
            problem = f"{origin}: {error}; each line must be a JSON string or an object like {example}"
            yield _bad(origin, InvalidRequestError(problem))
        else:
            if isinstance(record, str):
                yield _checked(Item(record, origin))
            else:
                yield _checked(Item(record.text, origin, bytes(getattr(record, "id", b""))))


def _from_delimited(file: IO[bytes], name: str, columns: Columns, delimiter: str) -> Iterator[Item]:
    """Yield the texts of a column of a table with a header. Blank lines between the rows are ignored."""
    csv.field_size_limit(MAX_TEXT_BYTES)
    # Columns that are not read may have bytes that are not UTF-8. In the columns that are read, these become lone surrogates.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # strict: otherwise a quote that is never closed turns the rest of the file into one text.
    reader = csv.reader(_bounded_lines(text, name), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        text_place, id_place = columns.places(name, header)
        line = reader.line_num
        for row in reader:
            origin = f"{name}, line {line + 1}"
            line = reader.line_num
            if not row:
                continue
            if len(row) != len(header):
                problem = (
                    f"{origin} has {len(row)} columns instead of {len(header)}; a text that holds a separator needs quotes"
                )
                yield _bad(origin, InvalidRequestError(problem))
                continue
            try:
                name_of_it = b"" if id_place is None else msgspec.json.encode(row[id_place])
                row[text_place].encode()
            except UnicodeEncodeError:
                yield _bad(origin, InvalidTextError(f"{origin} is not valid UTF-8; convert it, for example with iconv"))
            else:
                yield _checked(Item(row[text_place], origin, name_of_it))
    except csv.Error as error:
        raise InvalidRequestError(
            f"{name}, line {reader.line_num}: {error}; quotes must be closed, and doubled inside"
        ) from None
    finally:
        text.detach()  # otherwise the wrapper closes the file


def _from_parquet(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    schema = parquet.column_names(file, name)
    text_place, id_place = columns.places(name, schema)
    chosen = [schema[place] for place in (text_place, id_place) if place is not None]
    for number, (data, value) in enumerate(parquet.read_columns(file, name, chosen), start=1):
        origin = f"{name}, row {number}"
        yield _item(data, origin, b"" if value is None else msgspec.json.encode(value))


INPUT_FORMATS: dict[str, Callable[[IO[bytes], str, Columns], Iterator[Item]]] = {
    "lines": _from_lines,
    "jsonl": _from_json_lines,
    "csv": partial(_from_delimited, delimiter=","),
    "tsv": partial(_from_delimited, delimiter="\t"),
    "parquet": _from_parquet,
}
"""The reader of each format: it takes the file, its name in error messages and the columns, and yields the items."""

_EXTENSIONS = {
    ".txt": "lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Yield origin and bytes of every line. Only LF and CR LF end a line, since a text may contain other separators."""
    number = 0
    while line := file.readline(MAX_TEXT_BYTES + 1):
        number += 1
        if number == 1 and not (line := line.removeprefix(codecs.BOM_UTF8)):
            break
        if len(line) > MAX_TEXT_BYTES:
            raise _no_lines(name, number)
        yield f"{name}, line {number}", line.removesuffix(b"\n").removesuffix(b"\r")


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
