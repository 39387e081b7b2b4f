"""The guard of the loopback port. It accepts a request only if it has the token and names this host."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from runed.api.openai.errors import ForeignHostError, UnauthenticatedError, error_response
from runed.errors import RunedError
from runed.log import get_logger

_HTTP_PORT = 80

_log = get_logger(__name__)


def guarded(app: ASGIApp, *, token: str, port: int) -> ASGIApp:
    """Put an application behind a token.

    No path is open without the token, not even to a browser's `OPTIONS`. No answer has a CORS header. So a web page can neither
    send a request nor read an answer.

    Args:
        app: The application to serve.
        token: The token.
        port: The port of the application.
    """
    names = ("127.0.0.1", "localhost", "[::1]")
    hosts = {f"{name}:{port}".encode() for name in names}
    if port == _HTTP_PORT:  # clients leave this port out
        hosts |= {name.encode() for name in names}

    async def app_behind_the_token(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _check_host(scope, hosts, port) or _check_token(scope, token.encode())
        if refusal is None:
            await app(scope, receive, send)
            return
        _log.warning("request over the loopback port refused", connection=scope["client"], reason=refusal.reason)
        headers = {"www-authenticate": "Bearer"} if isinstance(refusal, UnauthenticatedError) else None
        await error_response(refusal, headers=headers)(scope, receive, send)

    return app_behind_the_token


def _check_host(scope: Scope, hosts: set[bytes], port: int) -> RunedError | None:
    values = _values(scope, b"host")
    if len(values) == 1 and values[0].lower() in hosts:
        return None
    return ForeignHostError(f"this Host is not served here; use http://127.0.0.1:{port}/v1, or localhost or [::1] in its place")


def _check_token(scope: Scope, token: bytes) -> RunedError | None:
    values = _values(scope, b"authorization")
    scheme, _, credentials = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    # In constant time: the duration of a comparison must not tell how much of a guess is right.
    if hmac.compare_digest(credentials.strip(), token) and scheme.lower() == b"bearer":
        return None
    return UnauthenticatedError(
        "no valid token came with the request; send the content of http.token, in the home of runed (~/.runed), as the API "
        "key, which is the header Authorization: Bearer TOKEN"
    )


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]
