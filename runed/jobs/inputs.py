"""Where the texts to embed come from: arguments, or files of lines, JSON lines, CSV, TSV or Parquet.

All of the input is read and checked before the first text is embedded, so that a bad line 90,000 is told in the first second,
and the number of vectors is known before the first is written. Then it is read again, text by text: no input is too large.
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
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from runed.errors import EmptyTextError, InvalidRequestError, InvalidTextError, SettingsError
from runed.jobs import parquet

STANDARD_INPUT = "-"
"""The name of standard input where a file is expected."""

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""What a line, a field or a whole file may have, so that a file of another kind fills no memory; the daemon takes less."""

_SPOOLED_BYTES = 1024 * 1024
"""How much of a pipe is kept in memory; what is larger goes to a temporary file."""

_SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Item:
    """A text to embed.

    Attributes:
        text: The text; empty if there is a problem with it.
        origin: Where it stands, for errors, as in "notes.txt, line 4".
        id: The caller's own name of it, as JSON, to be echoed; empty if there is none.
        problem: Why it cannot be embedded, as far as that is plain without the daemon; its message begins with the origin.
    """

    text: str
    origin: str
    id: bytes = b""
    problem: InvalidRequestError | None = None


Source = Callable[[], Iterator[Item]]
"""Gives all items of the input, each time from the start."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table, or members of a JSON object, are read.

    Attributes:
        text: The name of the column of the texts.
        id: The name of the column of the ids; None means "id" where there is such a column.
    """

    text: str = "text"
    id: str | None = None

    @property
    def id_or_default(self) -> str:
        """The name of the column of the ids, which need not be there; empty if the one of that name has the texts."""
        return self.id or ("id" if self.text != "id" else "")

    def places(self, name: str, header: Sequence[str]) -> tuple[int, int | None]:
        """Give the positions of text and id among the columns of a table.

        Args:
            name: What the table is called.
            header: The names of its columns.

        Raises:
            SettingsError: A column is not there.
        """
        for option, column in (("--text-column", self.text), ("--id-column", self.id)):
            if column is not None and column not in header:
                shown = ", ".join(f'"{other}"' for other in header[:_SHOWN_COLUMNS])
                raise SettingsError(f'{name} has no column "{column}", but {shown}; name the right one by {option}')
        chosen = self.id_or_default
        return header.index(self.text), header.index(chosen) if chosen in header else None


class InputFile:
    """A file, a pipe or standard input, which can be read from its start any number of times.

    Args:
        path: Its path, or "-" for standard input.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.name = "standard input" if path == STANDARD_INPUT else path
        self._spool: IO[bytes] | None = None
        self._offset: int | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Give the file, at its start; what can be read only once is copied to a temporary file first.

        Raises:
            SettingsError: It cannot be read.
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
        if self._path != STANDARD_INPUT:
            return open(self._path, "rb")  # noqa: PTH123 # also reads /dev/fd/63, which a shell passes for <(command)
        if sys.stdin is None:
            return open(os.devnull, "rb")  # noqa: PTH123 # as above
        file = open(os.dup(sys.stdin.fileno()), "rb")  # noqa: PTH123, SIM115 # a descriptor has no path; `open` closes it
        if file.seekable():
            # Whoever redirected a file may have read from it; where we begin is where it stood at first.
            self._offset = file.tell() if self._offset is None else file.seek(self._offset)
        return file


def from_arguments(texts: Sequence[str]) -> Iterator[Item]:
    """Take each argument as one text."""
    for position, text in enumerate(texts, start=1):
        # The bytes that were no UTF-8 arrive as lone surrogates (PEP 383).
        yield _item(os.fsencode(text), f"argument {position}")


def from_whole_file(source: InputFile) -> Iterator[Item]:
    """Take a file as one text."""
    with source.open() as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidRequestError(f"{source.name} has more than {MAX_TEXT_BYTES // 2**20} MiB, which is no text to embed")
    yield _item(data.removeprefix(codecs.BOM_UTF8), source.name)


def from_file(source: InputFile, input_format: str, columns: Columns) -> Iterator[Item]:
    """Take the texts that a file of one of `INPUT_FORMATS` holds.

    Raises:
        SettingsError: The file cannot be read, or has not the columns.
        InvalidRequestError: The file is not of that format, so that there is no telling where a text ends.
    """
    with source.open() as file:
        yield from INPUT_FORMATS[input_format](file, source.name, columns)


def choose_input_format(path: str) -> str:
    """Give the format of a file by its extension; JSON lines if that tells nothing."""
    return _EXTENSIONS.get(Path(path).suffix.lower(), "jsonl")


def _from_lines(file: IO[bytes], name: str, _columns: Columns) -> Iterator[Item]:
    for origin, line in _lines(file, name):
        yield _item(line, origin)


def _from_json_lines(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    """Take each line as a JSON string, or as an object with a text and, optionally, an id."""
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


def _from_csv(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    return _from_delimited(file, name, columns, ",")


def _from_tsv(file: IO[bytes], name: str, columns: Columns) -> Iterator[Item]:
    return _from_delimited(file, name, columns, "\t")


def _from_delimited(file: IO[bytes], name: str, columns: Columns, delimiter: str) -> Iterator[Item]:
    """Take a column of a table with a header; blank lines between the rows are none."""
    csv.field_size_limit(MAX_TEXT_BYTES)
    # What is no UTF-8 in a column that is not read is no concern; in the others it shows as lone surrogates.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # strict: a quote that is never closed must not swallow the rest of the file as one text.
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
        text.detach()  # which would close the file with it


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
    "csv": _from_csv,
    "tsv": _from_tsv,
    "parquet": _from_parquet,
}
"""What reads a format, by the format's name: takes the file, its name and the columns, gives the items."""

_EXTENSIONS = {
    ".txt": "lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Give origin and bytes of every line; only LF and CR LF end one, as other separators may stand inside of a text."""
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
    """Find here what the daemon would refuse anyway: a blank line must not cost an hour's work before it."""
    if not item.text or item.text.isspace():
        problem = f"{item.origin} is empty or only white space, so that its vector would mean nothing; leave it out"
        return _bad(item.origin, EmptyTextError(problem), item.id)
    if "\0" in item.text:
        problem = f"{item.origin}: the text has a NUL character; remove it, or check that this is text"
        return _bad(item.origin, InvalidTextError(problem), item.id)
    return item


def _bad(origin: str, problem: InvalidRequestError, name: bytes = b"") -> Item:
    return Item("", origin, name, problem)
