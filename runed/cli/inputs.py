"""Where the texts to embed come from: arguments, lines, whole files or JSON lines.

All of the input is read and checked before the first text is embedded, so that a bad line 90,000 is told in the first second,
and the number of vectors is known before the first is written.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from runed.errors import EmptyTextError, InvalidRequestError, InvalidTextError, SettingsError

STANDARD_INPUT = "-"
"""The name of standard input where a file is expected."""


@dataclass(frozen=True, slots=True)
class Item:
    """A text to embed.

    Attributes:
        text: The text.
        origin: Where it stands, for errors, as in "notes.txt, line 4".
        id: The caller's own name of it, as JSON, to be echoed; empty if there is none.
    """

    text: str
    origin: str
    id: bytes = b""


class _BatchLine(msgspec.Struct, frozen=True):
    text: str
    id: msgspec.Raw = msgspec.Raw(b"")


def from_arguments(texts: Sequence[str]) -> Iterator[Item]:
    """Take each argument as one text."""
    for position, text in enumerate(texts, start=1):
        # The bytes that were no UTF-8 arrive as lone surrogates (PEP 383).
        yield _item(os.fsencode(text), f"argument {position}")


def from_lines(path: str) -> Iterator[Item]:
    """Take each line of a file as one text."""
    for origin, line in _lines(path):
        yield _item(line, origin)


def from_whole_file(path: str) -> Iterator[Item]:
    """Take a file as one text."""
    yield _item(_read(path), _name(path))


def from_json_lines(path: str) -> Iterator[Item]:
    """Take each line of a file as a JSON string, or as an object with `text` and, optionally, `id`."""
    for origin, line in _lines(path):
        try:
            record = msgspec.json.decode(line, type=str | _BatchLine)
        except UnicodeDecodeError as error:
            raise _not_utf8(origin, error) from None
        except msgspec.DecodeError as error:
            raise InvalidRequestError(
                f'{origin}: {error}; each line must be a JSON string or an object like {{"id": 1, "text": "..."}}'
            ) from None
        if isinstance(record, str):
            yield _checked(Item(record, origin))
        else:
            yield _checked(Item(record.text, origin, bytes(record.id)))


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Give origin and bytes of every line; only LF and CR LF end one, as other separators may stand inside of a text."""
    lines = _read(path).split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield f"{_name(path)}, line {number}", line.removesuffix(b"\r")


def _read(path: str) -> bytes:
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read() if sys.stdin is not None else b""
        else:
            with open(path, "rb") as file:  # noqa: PTH123 # also reads /dev/fd/63, which a shell passes for <(command)
                data = file.read()
    except OSError as error:
        raise SettingsError(f"{_name(path)} cannot be read: {error.strerror}") from None
    return data.removeprefix(codecs.BOM_UTF8)


def _name(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else path


def _item(data: bytes, origin: str) -> Item:
    try:
        return _checked(Item(data.decode(), origin))
    except UnicodeDecodeError as error:
        raise _not_utf8(origin, error) from None


def _not_utf8(origin: str, error: UnicodeDecodeError) -> InvalidTextError:
    return InvalidTextError(f"{origin}: byte {error.start} of it is not valid UTF-8; convert it, for example with iconv")


def _checked(item: Item) -> Item:
    """Refuse here what the daemon would refuse anyway and is common: a blank line must not cost an hour's work before it."""
    if not item.text or item.text.isspace():
        raise EmptyTextError(f"{item.origin} is empty or only white space, so that its vector would mean nothing; leave it out")
    return item
