"""Errors as the OpenAI API writes them, with the headers that tell its official clients whether to try again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from runed import errors
from runed.api.error_codes import CanceledError, MalformedRequestError


class UnauthenticatedError(errors.RunedError):
    """The request carries no token, or a wrong one."""

    reason = "UNAUTHENTICATED"


class ForeignHostError(errors.RunedError):
    """The request is for another host: a web page has let its own name lead here (DNS rebinding)."""

    reason = "FOREIGN_HOST"


class ModelNotFoundError(errors.InvalidRequestError):
    """There is no model of that name."""

    reason = "MODEL_NOT_FOUND"


class UnsupportedTypeError(MalformedRequestError):
    """The body is not what its path takes, by its `Content-Type` or `Content-Encoding`."""


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
    CanceledError: 499,  # as proxies log it: nobody is left to read it
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
"""What a caller is told to wait where the error does not say."""


def error_response(
    error: errors.RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Give the response that tells of an error.

    Args:
        error: What is wrong and what to do; its `field` of the metadata, if any, is the parameter that is to blame.
        status: The HTTP status, if it is not that of this kind of error.
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
    """Say whether to try again: without `x-should-retry`, official clients try every 5xx again, and no other refusal."""
    if status not in _TRANSIENT:
        return {"x-should-retry": "false"}
    seconds = error.retry_after or _RETRY_SECONDS
    return {
        "x-should-retry": "true",
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),  # what official clients read first
    }
