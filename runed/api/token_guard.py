"""The gate of the port. It lets a request in only if it names this host and has the token.

Without a token, a request of a web page of another host is turned away.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Protocol

from runed.api import ollama, tei
from runed.api.error_codes import ForeignHostError, ForeignOriginError, UnauthenticatedError, code_of
from runed.api.host import CountCall, count_nothing
from runed.api.ollama.errors import error_response as ollama_response
from runed.api.openai.errors import error_response as openai_response
from runed.api.tei.errors import error_response as tei_response
from runed.errors import RunedError
from runed.log import get_logger, log_refusal
from runed.server import Gate, Head, Headers, Refusal

if TYPE_CHECKING:
    from runed.api.web.app import Refusing

_HTTP_PORT = 80

_TEI_PATHS = tei.PATHS - {"/"}
"""The paths that programs for TEI alone ask for."""

_log = get_logger(__name__)


class Page(Protocol):
    """Knows the requests of the page, which have no token."""

    def admits(self, head: Head) -> bool:
        """Return whether a request is one of the page that may be served."""
        ...

    def refusal(self, head: Head) -> Refusal | None:
        """Return the answer to a browser that may not see the page; None for any other program."""
        ...


def token_gate(
    *, token: str | None, port: int, exposed: bool = False, count: CountCall = count_nothing, page: Page | None = None
) -> Gate:
    """Return the gate of a port.

    No path is open without the token, not even to a browser's `OPTIONS`. The page has secrets of its own. No answer has a CORS
    header. So a page of another host can neither send a request nor read an answer. The same holds without a token, as browsers
    tell whose page sends a request.

    Args:
        token: The token; None lets in every program of this machine.
        port: The port.
        exposed: Whether other machines may reach it. They know it by names that the daemon does not know, so that each name is
            good. The token keeps web pages out.
        count: Counts what is turned away.
        page: Knows the requests of the page. It is asked about those without a token.

    Raises:
        ValueError: The port is exposed and has no token.
    """
    if exposed and token is None:
        raise ValueError("an exposed port needs a token")
    names = ("127.0.0.1", "localhost", "[::1]")
    hosts = {f"{name}:{port}".encode() for name in names}
    if port == _HTTP_PORT:  # clients leave this port out
        hosts |= {name.encode() for name in names}

    def gate(head: Head) -> Refusal | None:
        headers = head.headers
        error = None if exposed else _check_host(headers, hosts, port)
        error = error or (_check_origin(headers, hosts) if token is None else _check_token(headers, token.encode()))
        without_token = page if isinstance(error, UnauthenticatedError) else None
        if error is None or (without_token is not None and without_token.admits(head)):
            return None
        count("other", code_of(error).value, 0.0, error.reason)
        log_refusal(_log, "request over the loopback port refused", kind=error.reason, reason=error.reason)
        if without_token is not None and (answer := without_token.refusal(head)) is not None:
            return answer
        extra = {"www-authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else None
        response = _writer(head)(error, headers=extra)
        kept = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
        return Refusal(response.status_code, kept, bytes(response.body))

    return gate


def _writer(head: Head) -> Refusing:
    """Return what writes an error as the clients of a path read it."""
    path = head.target.partition(b"?")[0].decode("latin-1")
    if path.startswith(ollama.PREFIX):
        return ollama_response
    return tei_response if path in _TEI_PATHS else openai_response


def _check_host(headers: Headers, hosts: set[bytes], port: int) -> RunedError | None:
    values = _values(headers, b"host")
    if len(values) == 1 and values[0].lower() in hosts:
        return None
    return ForeignHostError(f"this Host is not served here; use http://127.0.0.1:{port}/v1, or localhost or [::1] in its place")


def _check_origin(headers: Headers, hosts: set[bytes]) -> RunedError | None:
    """Refuse what a browser sends for a page of another host: it tells `Origin`, except with some GETs, or `Sec-Fetch-Site`."""
    origins = {value.lower().removeprefix(b"http://") for value in _values(headers, b"origin")}
    sites = set(_values(headers, b"sec-fetch-site"))
    if origins <= hosts and sites <= {b"same-origin", b"none"}:
        return None
    return ForeignOriginError("web pages of other hosts are not served here; let a program of yours ask in their place")


def _check_token(headers: Headers, token: bytes) -> RunedError | None:
    values = _values(headers, b"authorization")
    scheme, _, credentials = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    # In constant time: the duration of a comparison must not tell how much of a guess is right.
    if hmac.compare_digest(credentials.strip(), token) and scheme.lower() == b"bearer":
        return None
    return UnauthenticatedError(
        "no valid token came with the request; send the content of http.token, in the home of runed (~/.runed), as the API "
        "key, which is the header Authorization: Bearer TOKEN. For programs that can send none, there is RUNED_HTTP_TOKEN=off"
    )


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]
