"""Errors as the OpenAI API writes them, with the headers that tell its official clients whether to try again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from runed import errors
from runed.api.error_codes import CanceledError, MalformedRequestError


class UnauthenticatedError(errors.RunedError):
    """The request carries no token, or a wrong token."""

    reason = "UNAUTHENTICATED"


class ForeignHostError(errors.RunedError):
    """The request names another host. A web page has let its own name point to this machine (DNS rebinding)."""

    reason = "FOREIGN_HOST"


class ModelNotFoundError(errors.InvalidRequestError):
    """There is no model of that name."""

    reason = "MODEL_NOT_FOUND"


class UnsupportedTypeError(MalformedRequestError):
    """The body has a `Content-Type` or `Content-Encoding` that its path does not take."""


_STATUS: dict[type[errors.RunedError], int] = {
    UnauthenticatedError: 401,
    ForeignHostError: 403,
    ModelNotFoundError: 404,
    UnsupportedTypeError: 415,
    errors.InvalidRequestError: 400,
    errors.RequestTooLargeError: 413,
    errors.QueueFullError: 429,
    errors.UnimplementedError: 404,
    errors.BootstrappingError: 503,
    errors.ShuttingDownError: 503,
    errors.BackendUnavailableError: 503,
    errors.DeadlineExceededError: 504,
    CanceledError: 499,  # the status that proxies log; the caller is gone
    errors.RunedError: 500,
}

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_TRANSIENT = {429, 503, 504}

_PARAMS: dict[type[errors.RunedError], str] = {
    errors.EmptyTextError: "input",
    errors.InvalidTextError: "input",
    errors.TextTooLongError: "input",
    errors.EmptyBatchError: "input",
    errors.BatchTooLargeError: "input",
    errors.BadDimensionsError: "dimensions",
    errors.BadInstructionError: "instruction",
    ModelNotFoundError: "model",
}

_RETRY_SECONDS = 1.0
"""Seconds until another try, for errors that do not tell it."""


def error_response(
    error: errors.RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that tells of an error.

    Args:
        error: The error; the `field` of its metadata, if there is one, is the parameter at fault.
        status: The HTTP status, if it differs from that of this kind of error.
        headers: Further headers.
    """
    status = status or next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)
    body = {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error"),  # noqa: PLR2004 # HTTP's
            "param": error.metadata.get("field") or _PARAMS.get(type(error)),
            "code": error.reason,
        }
    }
    return Response(
        msgspec.json.encode(body), status, {**_retry_headers(error, status), **(headers or {})}, media_type="application/json"
    )


def _retry_headers(error: errors.RunedError, status: int) -> dict[str, str]:
    """Return the headers about another try. Without `x-should-retry`, official clients try exactly every 5xx again."""
    if status not in _TRANSIENT:
        return {"x-should-retry": "false"}
    seconds = error.retry_after or _RETRY_SECONDS
    return {
        "x-should-retry": "true",
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),  # official clients read this first
    }
