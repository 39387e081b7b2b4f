"""Errors as Ollama writes them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from runed.api.web.errors import retry_headers, status_of
from runed.errors import RunedError


def error_response(error: RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that tells of an error; see `runed.api.web.app.Refusing`."""
    status = status or status_of(error)
    body = msgspec.json.encode({"error": error.message})
    return Response(body, status, {**retry_headers(error, status), **(headers or {})}, media_type="application/json")
