"""The requests of HTTP/1.1 that nearly every call is, and their answers, without a state machine.

h11 takes as long as the rest of a short call. So a request of the plainest form is read here at once, and its answer is written
at once. Everything else is left to h11, with the same bytes. A test compares both ways.
"""

from __future__ import annotations

import re
from functools import lru_cache

from runed.server.heads import KNOWN_HEADS, SMALL_HEAD, Head, Headers, date_header

_LINES = rb"(?:[A-Za-z0-9-]++:[ -~]*+\r\n)++"
"""Headers in ASCII, none of which is folded or has a tab."""

_HEAD = re.compile(rb"POST (/[!-~]*+) HTTP/1\.1\r\n(%b)\r\n" % _LINES)
_HEADERS = re.compile(_LINES)

_LENGTH = re.compile(rb"\d{1,7}")

_NOT_PLAIN = {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"}
"""Headers that ask for more than one whole answer to one whole request."""

_LONGEST_HEAD = 8 * 1024
"""Most bytes of a head that is read here, so that none is that h11 would refuse."""

_OK = 200


def read_ordinary(data: bytes) -> tuple[Head, bytes] | None:
    """Return head and body of a request; None if the bytes are not exactly one whole POST of the plainest form."""
    end = data.find(b"\r\n\r\n", 0, _LONGEST_HEAD) + len(b"\r\n\r\n")
    head = _read_known_head(data[:end]) if end <= SMALL_HEAD else _read_head(data[:end])
    if head is None or head[1] != len(data) - end:
        return None
    return head[0], data[end:]


def _read_head(data: bytes) -> tuple[Head, int] | None:
    """Return a head and the length of its body; None if it is not of the plainest form."""
    if (found := _HEAD.fullmatch(data)) is None:
        return None
    lines = [line.partition(b":") for line in found[2].split(b"\r\n")[:-1]]
    headers = [(name.lower(), value.strip(b" ")) for name, _, value in lines]
    values = dict(headers)
    if len(values) < len(headers) or b"host" not in values or not _NOT_PLAIN.isdisjoint(values):
        return None
    length = values.get(b"content-length", b"")
    if not _LENGTH.fullmatch(length):
        return None
    if values.get(b"connection", b"keep-alive") != b"keep-alive":
        return None
    return Head(b"POST", found[1], tuple(headers), "1.1"), int(length)


_read_known_head = lru_cache(KNOWN_HEADS)(_read_head)


def write_ordinary(status: int, headers: Headers, body: bytes) -> bytes | None:
    """Return a whole answer to such a request; None if it is not of the plainest form."""
    head = b"".join([b"%b: %b\r\n" % header for header in (*headers, date_header())])
    values = dict(headers)
    if status != _OK or values.get(b"content-length") != b"%d" % len(body) or not _HEADERS.fullmatch(head):
        return None
    if b"connection" in values or b"transfer-encoding" in values:
        return None
    return b"HTTP/1.1 200 \r\n%b\r\n%b" % (head, body)
