"""The application of one JSON API: its routes, and its errors in the form that its clients read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runed.api.error_codes import MalformedRequestError
from runed.api.large import let_go
from runed.errors import RunedError, UnimplementedError, apology

_WRONG_METHOD = 405


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


def build_web_app(routes: Sequence[BaseRoute], refuse: Refusing, *, paths: str) -> Starlette:
    """Build the application of an API.

    Args:
        routes: The routes. An error that they raise is answered.
        refuse: Writes an error.
        paths: The main paths, for the error of an unknown one.
    """

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RunedError)
        let_go(error)
        return refuse(error)

    async def no_such_route(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == _WRONG_METHOD:
            allowed = (error.headers or {}).get("Allow", "")
            wrong = MalformedRequestError(f"this HTTP method cannot be used here; use {allowed}")
            return refuse(wrong, status=_WRONG_METHOD, headers={"allow": allowed})
        return refuse(UnimplementedError(f"there is no such path; here are {paths}"))

    async def apologize(_: Request, error: Exception) -> Response:
        # Starlette raises the error of a bug again afterwards, and the server logs it without its text.
        return refuse(apology(error))

    app = Starlette(routes=routes, exception_handlers={RunedError: refused, HTTPException: no_such_route, Exception: apologize})
    app.router.redirect_slashes = False  # a redirection would turn a POST into a GET
    return app


def json_response(document: object) -> Response:
    """Return a response of JSON."""
    return Response(msgspec.json.encode(document), media_type="application/json")
