"""The errors of the JSON APIs, their HTTP status, and the headers that tell clients whether to try again."""

from __future__ import annotations

import math

from runed import errors
from runed.api.error_codes import (
    CanceledError,
    ForeignHostError,
    ForeignOriginError,
    MalformedRequestError,
    UnauthenticatedError,
)


class UnsupportedTypeError(MalformedRequestError):
    """The body has a `Content-Type` or `Content-Encoding` that its path does not take."""


_STATUS: dict[type[errors.RunedError], int] = {
    UnauthenticatedError: 401,
    ForeignHostError: 403,
    ForeignOriginError: 403,
    errors.UnknownModelError: 404,
    errors.ModelNotInstalledError: 404,
    errors.ModelBusyError: 409,
    errors.SpaceChangedError: 409,
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

_TRANSIENT = {429, 503, 504}

_RETRY_SECONDS = 1.0
"""Seconds until another try, for errors that do not tell it."""


def status_of(error: errors.RunedError) -> int:
    """Return the HTTP status of an error."""
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def retry_headers(error: errors.RunedError, status: int) -> dict[str, str]:
    """Return the headers about another try. Without `x-should-retry`, the clients of OpenAI try exactly every 5xx again."""
    if status not in _TRANSIENT:
        return {"x-should-retry": "false"}
    seconds = error.retry_after or _RETRY_SECONDS
    return {
        "x-should-retry": "true",
        "retry-after": str(math.ceil(seconds)),
        "retry-after-ms": str(math.ceil(seconds * 1000)),  # the clients of OpenAI read this first
    }
