"""Reads a text and its id from one JSON line, or one element of an array. Other members may hold anything that looks like JSON.

msgspec reads nearly all lines. A line that it refuses is read again here, since it also refuses NaN, half of a surrogate pair
and deep nesting in members that nobody reads. Programs in Python write such lines.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import cast

import msgspec

from runed.errors import InvalidRequestError, InvalidTextError

_VALUE = "{[sv"
"""The kinds of tokens that a value can begin with; see `_TOKEN`."""

_TOKEN = re.compile(
    rb"""[ \t\r\n]*+(?:
        (?P<mark>[{}\[\],:])
        | (?P<s>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")
        | (?P<v>(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|-?Infinity|NaN|true|false|null)(?![^\s,:{}\[\]"]))
    )""",
    re.VERBOSE,
)
"""A bracket, comma or colon; a string; or another value. The kind of a token is its mark, or the name of its group."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_blank(line: bytes) -> bool:
    """Return whether a line holds nothing, so that it is no text."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def members(line: bytes) -> dict[str, bytes]:
    """Return the members of a line or an element as JSON; none if it is no object."""
    try:
        return {name: bytes(value) for name, value in _MEMBERS.decode(line).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _members(line)
    except _NoJSONError:
        return {}


class LineDecoder:
    """Reads the texts and ids of JSON lines: a JSON string a line, or an object with a text and, optionally, an id.

    Args:
        text: The name of the member with the text.
        id_: The name of the member with the id; empty for none.
        what: What each of them is, for error messages.
    """

    def __init__(self, text: str, id_: str, what: str = "line") -> None:
        self._text, self._id, self._what = text, id_, what
        fields: list[tuple[str, type] | tuple[str, type, object]] = [("text", str)]
        if id_:
            fields.append(("id", msgspec.Raw, msgspec.Raw(b"")))
        line_type = msgspec.defstruct("Line", fields, rename={"text": text, "id": id_})
        self._decode: Callable[[bytes], object] = msgspec.json.Decoder(str | line_type).decode

    def read(self, line: bytes) -> tuple[str, bytes] | None:
        """Return the text of a line and its id as JSON, which is empty if there is none. Return None for a blank line.

        Raises:
            InvalidRequestError: The line is not such JSON. The message does not name the line.
            InvalidTextError: The text or the id is not valid Unicode.
        """
        try:
            record = self._decode(line)
        except msgspec.ValidationError as error:
            raise self._refusal(str(error), line) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_leniently(line)
        if isinstance(record, str):
            return record, b""
        text, *ids = msgspec.structs.astuple(cast("msgspec.Struct", record))
        id_ = bytes(ids[0]) if ids else b""
        return text, id_ if id_.isascii() else _checked_id(id_)

    def _read_leniently(self, line: bytes) -> tuple[str, bytes] | None:
        if is_blank(line):
            return None
        if line.startswith(codecs.BOM_UTF8):  # of a file that was appended to another one
            line = line.replace(codecs.BOM_UTF8, b"   ", 1)
        try:
            members = {self._text: line} if _is_string(line) else _members(line)
        except _NoJSONError as error:
            raise self._refusal(str(error), line) from None
        if (text := members.get(self._text)) is None:
            raise self._refusal(f"Object missing required field `{self._text}`", line)
        if not _is_string(text):
            raise self._refusal(f"Expected `str` - at `$.{self._text}`", line)
        id_ = members.get(self._id, b"") if self._id else b""
        return _text_of(text), _checked_id(id_)

    def _refusal(self, reason: str, line: bytes) -> InvalidRequestError:
        example = f'{{"id": 1, "{self._text}": "..."}}'
        remedy = f"each {self._what} must be a JSON string or an object like {example}"
        if line.removeprefix(codecs.BOM_UTF8).strip() == b"{":
            remedy += "; an object over several lines is made one line by `jq -c . FILE`"
        return InvalidRequestError(f"{reason}; {remedy}")


class _NoJSONError(Exception):
    """The reason why a line is no JSON."""


def _is_string(value: bytes) -> bool:
    token = _TOKEN.match(value)
    return token is not None and token.lastgroup == "s" and not value[token.end() :].strip()


def _members(line: bytes) -> dict[str, bytes]:
    """Return the members of an object as JSON. There is no recursion, so that nesting has no limit."""
    members: dict[str, bytes] = {}
    name: str | None = None
    begin, position = 0, 0
    brackets, wanted = bytearray(), "{"
    while wanted:
        token, kind = _next_token(line, position, wanted)
        position += len(token)
        if kind == "s" and wanted in ("s", "s}"):
            name, wanted = _name_of(token) if len(brackets) == 1 else name, ":"
        elif kind == ":":
            begin, wanted = position if len(brackets) == 1 else begin, _VALUE
        elif kind == ",":
            wanted = "s" if brackets.endswith(b"{") else _VALUE
        elif kind in "{[":
            brackets += kind.encode()
            wanted = "s}" if kind == "{" else _VALUE + "]"
        else:
            if kind in "}]":
                brackets.pop()
            if len(brackets) == 1 and name is not None:
                members[name] = line[begin:position].strip()
            wanted = (",}" if brackets.endswith(b"{") else ",]") if brackets else ""
    if line[position:].strip():
        raise _malformed(line, position)
    return members


def _next_token(line: bytes, position: int, wanted: str) -> tuple[bytes, str]:
    """Return the next token, with the white space before it, and its kind, which is one of the wanted ones."""
    token = _TOKEN.match(line, position)
    kind = "" if token is None else token["mark"].decode() if token["mark"] else str(token.lastgroup)
    if token is None or kind not in wanted:
        raise _malformed(line, position)
    return token[0], kind


def _malformed(line: bytes, position: int) -> _NoJSONError:
    rest = line[position:].lstrip()
    if not rest:
        return _NoJSONError("JSON ends too early")
    what = "a NUL, as in a damaged file or one of another kind" if rest.startswith(b"\0") else "invalid character"
    return _NoJSONError(f"JSON is malformed: {what} (byte {len(line) - len(rest)})")


def _name_of(token: bytes) -> str | None:
    """Return the name of a member; None if it is no Unicode, as no column has such a name."""
    try:
        name = str(json.loads(token))
        name.encode()
    except UnicodeError:
        return None
    return name


def _text_of(value: bytes) -> str:
    try:
        text = str(json.loads(value))
    except UnicodeDecodeError:
        raise InvalidTextError("the text is not valid UTF-8; convert the file, for example with iconv") from None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"the text is not valid Unicode (it has half of a surrogate pair at position {error.start}); replace or remove that"
        ) from None
    return text


def _checked_id(value: bytes) -> bytes:
    """Return an id if every program can read it."""
    try:
        value.decode()
        if value:
            msgspec.json.decode(value)
    except UnicodeDecodeError:
        raise InvalidTextError("its id is not valid UTF-8; convert the file, for example with iconv") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError(
            "its id holds NaN, Infinity, half of a surrogate pair or deep nesting, which other programs cannot read; change it"
        ) from None
    return value.strip()
