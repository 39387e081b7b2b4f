"""The rerank API of Jina, Cohere and llama-server. A program written for one of them only changes its URL and the model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runed.api.call_log import RERANK, logged_call
from runed.api.host import CountCall, Host, count_nothing
from runed.api.rerank import PATHS
from runed.api.web.app import build_web_app, json_response
from runed.api.web.errors import retry_headers, status_of
from runed.api.web.ranking import rank
from runed.api.web.requests import read_object
from runed.errors import RunedError


def build_rerank_app(host: Host, count: CountCall = count_nothing) -> Starlette:
    """Build the application that answers `POST /v1/rerank` and its other names.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application that answers any other method with an error of the same shape.
    """
    limit, socket = host.info().max_request_bytes, host.info().socket_path

    async def rerank(request: Request) -> Response:
        with logged_call("Rerank API", request, socket=socket, operation=RERANK) as call:
            return json_response(await rank(host, request, await read_object(request, limit), call))

    routes = [Route(path, rerank, methods=["POST"]) for path in sorted(PATHS)]
    return build_web_app(routes, _error_response, paths="POST /v1/rerank", count=count)


def _error_response(error: RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that tells of an error: as llama-server does, and in the members that Cohere and Jina have for it."""
    status = status or status_of(error)
    told = {"message": error.message, "type": "invalid_request_error" if status < 500 else "server_error"}  # noqa: PLR2004 # HTTP's
    body = {"error": told | {"code": error.reason}, "message": error.message, "detail": error.message}
    return Response(
        msgspec.json.encode(body), status, {**retry_headers(error, status), **(headers or {})}, media_type="application/json"
    )
