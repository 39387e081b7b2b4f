"""Reads JSON of clients: strictly where a request could be taken for another one, and without much time or memory.

Strings may have half of a surrogate pair, so that a text with one can be refused alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

from runed.api.error_codes import MalformedRequestError
from runed.api.large import MANY_BYTES, MOST_PARTS, too_many_parts
from runed.turns import Pauses

_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+){0,4096}+', re.DOTALL)
"""The next part of a string. The number of escapes is bounded, as other threads of this process wait for the end of a match."""


def read_json(data: bytes | bytearray) -> object:
    """Return the value of a JSON document in UTF-8, with or without a byte order mark.

    Raises:
        MalformedRequestError: This is no JSON, or it has a name twice, or a value that JSON does not know. The text of the
            error does not quote the document.
        RequestTooLargeError: There are more than `MOST_PARTS` values and names.
    """
    pauses = Pauses()
    if len(data) > MANY_BYTES:
        _check_parts(data)
        pauses.pause()
    try:
        text = data.decode("utf-8-sig")
        pauses.pause()
        document = _decoder.decode(text)
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg[0].lower()}{error.msg[1:]} at character {error.pos}") from None
    except ValueError:
        raise _invalid("a number has too many digits") from None
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    pauses.pause()
    return document


def check_unicode(text: str, name: str) -> None:
    """Refuse a string with half of a surrogate pair, which JSON can write and UTF-8 cannot.

    Raises:
        MalformedRequestError: It has one. The error has the name as its `field`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # without its message, which would quote the text
        raise MalformedRequestError(
            f"{name} has half of a surrogate pair at character {error.start}; replace or remove that", metadata={"field": name}
        ) from None


def _invalid(fault: str) -> MalformedRequestError:
    return MalformedRequestError(f"the request is not valid JSON: {fault}")


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(members)
    if len(document) < len(members):
        raise _invalid("an object has the same name twice")
    return document


def _refuse_constant(name: str) -> None:
    raise _invalid(f"it has {name}, which JSON does not know")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def _check_parts(data: bytes | bytearray) -> None:
    """Count the values and names of a document without reading it, up to the limit. A fault is left to the reader."""
    parts = at = 0
    while True:
        start = data.find(b'"', at)
        end = len(data) if start < 0 else start
        parts += 1 + sum(data.count(mark, at, end) for mark in (b",", b"[", b"{"))
        if parts > MOST_PARTS:
            raise too_many_parts()
        if start < 0:
            return
        at = start + 1
        while data[at : at + 1] != b'"':
            found = _IN_STRING.match(data, at)
            assert found is not None  # it also matches nothing
            if found.end() == at:
                return
            at = found.end()
        at += 1
