"""The code in the contract for each error of runed, and the errors that the faces of the daemon raise."""

from __future__ import annotations

from connectrpc.code import Code

from runed import errors


class MalformedRequestError(errors.InvalidRequestError):
    """The request is not a message of the contract, or has a wrong HTTP method, version or content type."""

    reason = "MALFORMED_REQUEST"


class CanceledError(errors.RunedError):
    """The caller cancelled the call, or its connection is gone."""

    reason = "CANCELED"


class UnknownServiceError(errors.InvalidRequestError):
    """`grpc.health.v1` was asked for a service that the daemon does not have."""

    reason = "UNKNOWN_SERVICE"


class TooManyWatchesError(errors.RunedError):
    """The limit of clients that watch the daemon's health is reached; metadata holds `limit`."""

    reason = "TOO_MANY_WATCHES"


class UnauthenticatedError(errors.RunedError):
    """The request carries no token, or a wrong token."""

    reason = "UNAUTHENTICATED"


class ForeignHostError(errors.RunedError):
    """The request names another host. A web page has let its own name point to this machine (DNS rebinding)."""

    reason = "FOREIGN_HOST"


class ForeignOriginError(errors.RunedError):
    """A web page of another host has sent the request."""

    reason = "FOREIGN_ORIGIN"


_CODES: dict[type[errors.RunedError], Code] = {
    errors.InvalidRequestError: Code.INVALID_ARGUMENT,
    UnknownServiceError: Code.NOT_FOUND,
    errors.UnknownModelError: Code.NOT_FOUND,
    TooManyWatchesError: Code.RESOURCE_EXHAUSTED,
    errors.RequestTooLargeError: Code.RESOURCE_EXHAUSTED,
    errors.QueueFullError: Code.RESOURCE_EXHAUSTED,
    errors.UnimplementedError: Code.UNIMPLEMENTED,
    errors.BootstrappingError: Code.FAILED_PRECONDITION,
    errors.NoCentroidSetError: Code.FAILED_PRECONDITION,
    errors.ModelNotInstalledError: Code.FAILED_PRECONDITION,
    errors.ModelTooLargeError: Code.FAILED_PRECONDITION,
    errors.ModelBusyError: Code.FAILED_PRECONDITION,
    errors.SpaceChangedError: Code.FAILED_PRECONDITION,
    errors.ShuttingDownError: Code.UNAVAILABLE,
    errors.DeadlineExceededError: Code.DEADLINE_EXCEEDED,
    CanceledError: Code.CANCELED,
    UnauthenticatedError: Code.UNAUTHENTICATED,
    ForeignHostError: Code.PERMISSION_DENIED,
    ForeignOriginError: Code.PERMISSION_DENIED,
    errors.BackendUnavailableError: Code.UNAVAILABLE,
    errors.RunedError: Code.INTERNAL,
}


def code_of(error: errors.RunedError) -> Code:
    """Return the code of an error."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
