"""Who may see the page: links that work once, and the sessions that they begin. The token of the port is in neither.

A link is `http://127.0.0.1:PORT/?link=NONCE#KEY`. The nonce is exchanged for a cookie. Browsers send a cookie to every port of
a host, so another program of this machine could get it. The key stays with the pages of this port: a browser never sends the
part after "#", and the page sends the key only to its own address. What the page shows needs both.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from runed.api.page import ROOT, SIMILARITY, STATE
from runed.server import Head, Headers, Refusal

LINK_SECONDS = 60
"""Seconds within which a link has to be opened."""

SESSION_SECONDS = 12 * 60 * 60
"""Seconds that a session lasts."""

KEY_HEADER = b"x-runed-page"
"""The header in which the page sends its key."""

_MOST = 16
"""Most links, and most sessions, at a time. The oldest one makes room."""

_BYTES = 32
"""Random bytes of each secret."""

HEADERS: Headers = (
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
"""Headers of all answers to the page: nobody keeps them, frames them, or learns the address from a `Referer`."""

_NO_ACCESS = b"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width">
<title>runed: no access</title>
<h1>This page needs a new link</h1>
<p>Run <code>runed open</code> in a terminal, and open the link that it prints. A link works once, within a minute. Access ends
after 12 hours, or when the daemon ends.</p>
</html>
"""

NO_ACCESS = Refusal(
    401,
    (
        *HEADERS,
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"www-authenticate", b"Bearer"),
    ),
    _NO_ACCESS,
)
"""The answer to a browser whose link or session is over."""


@dataclass(frozen=True, slots=True)
class _Grant:
    """A link or a session.

    Attributes:
        until: Its end, in seconds of the clock.
        key: The hash of the key of the page.
    """

    until: float
    key: bytes


class Access:
    """Makes links, and knows the sessions that they begin. They are in memory alone, and only as hashes.

    Args:
        url: The URL of the port, without a slash at the end.
        port: The port.
        needs_link: Whether requests need a link. A port without a token is open to every program of the machine, and so is its
            page.
        clock: Returns seconds that only grow.
    """

    def __init__(self, url: str, port: int, *, needs_link: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.needs_link = needs_link
        self._url = url
        self._cookie = f"runed-{port}"  # a cookie is for all ports of a host
        self._clock = clock
        self._links: dict[bytes, _Grant] = {}
        self._sessions: dict[bytes, _Grant] = {}

    def link(self) -> str:
        """Return a new link, or the URL of the page if it needs none."""
        if not self.needs_link:
            return f"{self._url}{ROOT}"
        nonce, key = secrets.token_urlsafe(_BYTES), secrets.token_urlsafe(_BYTES)
        _add(self._links, nonce, _Grant(self._clock() + LINK_SECONDS, _hash(key)))
        return f"{self._url}{ROOT}?link={nonce}#{key}"

    def redeem(self, nonce: str) -> str | None:
        """Begin a session by the nonce of a link, which is void from then on.

        Returns:
            The value of the header `Set-Cookie`, or None if there is no such link.
        """
        if (link := self._find(self._links, nonce)) is None:
            return None
        del self._links[_hash(nonce)]
        session = secrets.token_urlsafe(_BYTES)
        _add(self._sessions, session, _Grant(self._clock() + SESSION_SECONDS, link.key))
        return f"{self._cookie}={session}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict"

    def knows(self, headers: Headers) -> bool:
        """Return whether a request has the cookie of a session."""
        return self._session(headers) is not None

    def admits(self, head: Head) -> bool:
        """Return whether a request without the token is one of the page that may be served. Its `Host` must have been checked.

        Args:
            head: The head of the request.
        """
        path = head.target.partition(b"?")[0].decode("latin-1")
        if path == ROOT:
            return is_for_page(head.method, head.headers) and (self._has_link(head.target) or self.knows(head.headers))
        if path not in {STATE, SIMILARITY} or not _is_from_page(head.headers):
            return False
        session = self._session(head.headers)
        key = _only(head.headers, KEY_HEADER)
        return session is not None and hmac.compare_digest(session.key, _hash(key))

    def refusal(self, head: Head) -> Refusal | None:
        """Return the answer in HTML to a browser that may not see the page; None for any other program."""
        is_page = head.target.partition(b"?")[0].decode("latin-1") == ROOT and is_for_page(head.method, head.headers)
        return NO_ACCESS if is_page else None

    def _has_link(self, target: bytes) -> bool:
        nonce = nonce_of(target.partition(b"?")[2])
        return bool(nonce) and self._find(self._links, nonce) is not None

    def _session(self, headers: Headers) -> _Grant | None:
        for name, value in headers:
            if name != b"cookie":  # HTTP/2 may send several
                continue
            for cookie in value.decode("latin-1").split(";"):
                key, _, content = cookie.strip().partition("=")
                if key == self._cookie and (found := self._find(self._sessions, content)) is not None:
                    return found
        return None

    def _find(self, grants: dict[bytes, _Grant], secret: str) -> _Grant | None:
        grant = grants.get(_hash(secret))
        return grant if grant is not None and self._clock() < grant.until else None


def nonce_of(query: bytes) -> str:
    """Return the nonce of a link by the query of its URL; "" if it has none."""
    try:
        return next(iter(parse_qs(query.decode("ascii"), max_num_fields=1).get("link", ())), "")
    except ValueError:  # it is no ASCII, or has more than a link
        return ""


def is_for_page(method: bytes, headers: Headers) -> bool:
    """Return whether a request for `ROOT` is that of a browser that shows a page, in no frame."""
    is_navigation = _only(headers, b"sec-fetch-dest") in {"", "document"}
    return method in {b"GET", b"HEAD"} and "text/html" in _only(headers, b"accept") and is_navigation


def _is_from_page(headers: Headers) -> bool:
    """Return whether the page itself may have sent a request. Every other port of this host is the same site to a browser."""
    origin, site = _only(headers, b"origin"), _only(headers, b"sec-fetch-site")
    return origin.lower() in {"", f"http://{_only(headers, b'host').lower()}"} and site in {"", "same-origin"}


def _only(headers: Headers, name: bytes) -> str:
    """Return the value of a header; "" if there is none, and all values if there are several."""
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)


def _add(grants: dict[bytes, _Grant], secret: str, grant: _Grant) -> None:
    while len(grants) >= _MOST:
        del grants[next(iter(grants))]
    grants[_hash(secret)] = grant


def _hash(secret: str) -> bytes:
    # Comparisons of hashes tell nothing about a secret by their time, and a copy of the memory has no secret.
    return hashlib.sha256(secret.encode()).digest()
