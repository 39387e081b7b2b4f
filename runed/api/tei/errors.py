"""Errors as Text Embeddings Inference writes them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from runed import errors
from runed.api.error_codes import (
    ForeignHostError,
    ForeignOriginError,
    MalformedRequestError,
    UnauthenticatedError,
)
from runed.api.web.errors import UnsupportedTypeError, retry_headers

_KINDS: dict[type[errors.RunedError], tuple[int, str]] = {
    UnauthenticatedError: (401, "Validation"),
    ForeignHostError: (403, "Validation"),
    ForeignOriginError: (403, "Validation"),
    errors.EmptyBatchError: (400, "Empty"),
    errors.InvalidTextError: (422, "Tokenizer"),
    UnsupportedTypeError: (415, "Validation"),
    MalformedRequestError: (422, "Validation"),
    errors.InvalidRequestError: (413, "Validation"),
    errors.RequestTooLargeError: (413, "Validation"),
    errors.UnimplementedError: (404, "Validation"),
    errors.QueueFullError: (429, "Overloaded"),
    errors.BootstrappingError: (503, "Unhealthy"),
    errors.ShuttingDownError: (503, "Unhealthy"),
    errors.BackendUnavailableError: (503, "Unhealthy"),
    errors.BackendError: (424, "Backend"),
    errors.SpaceChangedError: (424, "Backend"),
    errors.RunedError: (500, "Backend"),
}
"""Status and type of each error, as TEI tells them."""


def error_response(
    error: errors.RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that tells of an error; see `runed.api.web.app.Refusing`."""
    usual, kind = next(_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS)
    status = status or usual
    body = msgspec.json.encode({"error": error.message, "error_type": kind})
    return Response(body, status, {**retry_headers(error, status), **(headers or {})}, media_type="application/json")
