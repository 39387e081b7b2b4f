"""The application of one JSON API: its routes, and its errors in the form that its clients read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from runed.api.error_codes import CanceledError, MalformedRequestError, code_of
from runed.api.host import CountCall
from runed.api.large import let_go
from runed.errors import RunedError, UnimplementedError, apology

_WRONG_METHOD = 405

_ENDED = "runed.ended"
"""The key of a call that ended with an error. Its value is the code and the reason."""


class Refusing(Protocol):
    """Writes an error as the clients of one API read it."""

    def __call__(self, error: RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response that tells of an error.

        Args:
            error: The error.
            status: The HTTP status, if it differs from that of this kind of error.
            headers: Further headers.
        """
        ...


def build_web_app(routes: Sequence[Route], refuse: Refusing, *, paths: str, count: CountCall) -> Starlette:
    """Build the application of an API.

    Args:
        routes: The routes. An error that they raise is answered.
        refuse: Writes an error.
        paths: The main paths, for the error of an unknown one.
        count: Counts the calls.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RunedError)
        _note(request.scope, error)
        let_go(error)
        return refuse(error)

    async def no_such_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == _WRONG_METHOD:
            allowed = (error.headers or {}).get("Allow", "")
            wrong = MalformedRequestError(f"this HTTP method cannot be used here; use {allowed}")
            _note(request.scope, wrong)
            return refuse(wrong, status=_WRONG_METHOD, headers={"allow": allowed})
        unknown = UnimplementedError(f"there is no such path; here are {paths}")
        _note(request.scope, unknown)
        return refuse(unknown)

    async def apologize(_: Request, error: Exception) -> Response:
        # Starlette raises the error of a bug again afterwards, and the server logs it without its text.
        return refuse(apology(error))

    app = Starlette(
        routes=routes,
        exception_handlers={RunedError: refused, HTTPException: no_such_route, Exception: apologize},
        middleware=[Middleware(_Counting, count, {route.endpoint: route.path for route in reversed(routes)})],
    )
    app.router.redirect_slashes = False  # a redirection would turn a POST into a GET
    return app


class _Counting:
    """Counts the calls of an API.

    Args:
        app: Serves them.
        count: Is told of them.
        methods: The name of the method of each endpoint. All other paths have one name together, since there are any number.
    """

    def __init__(self, app: ASGIApp, count: CountCall, methods: Mapping[object, str]) -> None:
        self._app = app
        self._count = count
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a call."""
        began = time.monotonic()
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            _note(scope, apology(error))
            raise
        except asyncio.CancelledError:
            _note(scope, CanceledError("the client has gone"))
            raise
        finally:
            code, reason = scope.get(_ENDED, ("ok", ""))
            method = self._methods.get(scope.get("endpoint"), "other")
            self._count(method, code, time.monotonic() - began, reason)


def _note(scope: Scope, error: RunedError) -> None:
    """Note the error of a call for its count."""
    scope[_ENDED] = (code_of(error).value, error.reason)


def json_response(document: object) -> Response:
    """Return a response of JSON."""
    return Response(msgspec.json.encode(document), media_type="application/json")
