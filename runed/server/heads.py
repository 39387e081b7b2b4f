"""Heads of requests, as far as RFC 9112 demands more of a server than h11 checks, and what all heads of responses have."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from itertools import chain

import h11

SMALL_HEAD = 1024
"""Most bytes of a small head. A client sends nearly the same small head with each request, so what follows from it is kept."""

KNOWN_HEADS = 256
"""Most small heads of which something is kept."""

_ABSOLUTE = re.compile(rb"http://([^/?#]+)(/[^#]*|\?[^#]*)?", re.IGNORECASE)
"""A target in absolute form (RFC 9112 section 3.2.2): the authority, and the rest."""

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request, with names in lower case."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The whole answer to a request that is not served.

    Attributes:
        status: The HTTP status.
        headers: The headers, without those about the length and the connection.
        body: The body.
    """

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A head that may be served.

    Attributes:
        method: The method.
        target: The path and the query, or "*".
        headers: The headers. The host is that of the target if the target names one.
        version: The version of HTTP: "1.0", "1.1" or "2".
        size: The bytes of all headers.
    """

    method: bytes
    target: bytes
    headers: Headers
    version: str
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(map(len, chain.from_iterable(self.headers))))


def refusal(status: int, message: str) -> Refusal:
    """Return an answer in plain text, which fits a client that may speak any protocol."""
    return Refusal(status, [(b"content-type", b"text/plain; charset=utf-8")], message.encode() + b"\n")


def read_head(request: h11.Request) -> Head | Refusal:
    """Return the head of a request, or the answer to a request that cannot be served."""
    if not request.http_version.startswith(b"1."):
        return refusal(505, "this version of HTTP is not served here; use HTTP/1.1, or HTTP/2 without TLS by prior knowledge")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        # Two programs on the way could take it for two different requests.
        return refusal(400, "Transfer-Encoding cannot be used with Content-Length or HTTP/1.0; send one of the two headers")
    if request.http_version > b"1.1" and names.count(b"host") != 1:  # h11 asks only HTTP/1.1 itself
        return refusal(400, "send the header Host once")
    if request.method == b"CONNECT":
        return refusal(501, "this is no proxy; send the request itself")
    return _route(request)


def answer_itself(head: Head) -> Refusal | None:
    """Return the answer to a request that is about the server as a whole, or None."""
    return Refusal(204, [(b"allow", b"GET, HEAD, OPTIONS, POST")], b"") if head.target == b"*" else None


def _route(request: h11.Request) -> Head | Refusal:
    target, headers = request.target, list(request.headers)
    if found := _ABSOLUTE.fullmatch(target):
        headers = [(b"host", found[1]), *(header for header in headers if header[0] != b"host")]
        rest = found[2] or b""
        target = rest if rest.startswith(b"/") else b"/" + rest
        if request.method == b"OPTIONS" and not rest:
            target = b"*"
    if target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS"):
        return Head(request.method, target, headers, request.http_version.decode())
    return refusal(400, "the target of the request is no path that begins with / and no http URL")


def date_header() -> tuple[bytes, bytes]:
    """Return the header with the time, which every response has."""
    return _date_header(int(time.time()))


@lru_cache(maxsize=1)
def _date_header(second: int) -> tuple[bytes, bytes]:
    return b"date", formatdate(second, usegmt=True).encode()
