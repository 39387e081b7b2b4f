"""The one table from an error of runed to its code on the wire."""

from __future__ import annotations

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from protobuf.wkt import Any

from runed import errors

DOMAIN = "runed.v1"
"""The domain of every `google.rpc.ErrorInfo` that the daemon sends."""


class MalformedRequestError(errors.InvalidRequestError):
    """What came is no message of the contract, or came by a wrong HTTP method, version or content type."""

    reason = "MALFORMED_REQUEST"


class CanceledError(errors.RunedError):
    """The caller gave up, or has gone."""

    reason = "CANCELED"


class UnknownServiceError(errors.InvalidRequestError):
    """The name of a service that the daemon does not have, where `grpc.health.v1` asks for one."""

    reason = "UNKNOWN_SERVICE"


class TooManyWatchesError(errors.RunedError):
    """As many clients watch the daemon's health as may; metadata holds `limit`."""

    reason = "TOO_MANY_WATCHES"


_CODES: dict[type[errors.RunedError], Code] = {
    errors.InvalidRequestError: Code.INVALID_ARGUMENT,
    UnknownServiceError: Code.NOT_FOUND,
    TooManyWatchesError: Code.RESOURCE_EXHAUSTED,
    errors.RequestTooLargeError: Code.RESOURCE_EXHAUSTED,
    errors.QueueFullError: Code.RESOURCE_EXHAUSTED,
    errors.UnimplementedError: Code.UNIMPLEMENTED,
    errors.BootstrappingError: Code.FAILED_PRECONDITION,
    errors.NoCentroidSetError: Code.FAILED_PRECONDITION,
    errors.ShuttingDownError: Code.UNAVAILABLE,
    errors.DeadlineExceededError: Code.DEADLINE_EXCEEDED,
    CanceledError: Code.CANCELED,
    errors.BackendUnavailableError: Code.UNAVAILABLE,
    errors.RunedError: Code.INTERNAL,
}

_FOREIGN: dict[Code, str] = {
    Code.INVALID_ARGUMENT: MalformedRequestError.reason,
    Code.RESOURCE_EXHAUSTED: errors.RequestTooLargeError.reason,
    Code.UNIMPLEMENTED: errors.UnimplementedError.reason,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceededError.reason,
    Code.CANCELED: CanceledError.reason,
    Code.INTERNAL: MalformedRequestError.reason,  # gRPC's code for what breaks its framing
}
"""The reasons of errors that the RPC library finds by itself, before or beside the handler."""


def code_of(error: errors.RunedError) -> Code:
    """Give the code of an error."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def error_info(error: errors.RunedError) -> ErrorInfo:
    """Give the detail that names the error's reason."""
    return ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=error.metadata)


def to_connect(error: errors.RunedError) -> ConnectError:
    """Give the error as it travels: code, message, `ErrorInfo` and, where trying again can help, `RetryInfo`."""
    details = [_detail(error_info(error))]
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(_detail(retry))
    return ConnectError(code_of(error), error.message, details)


def complete(error: ConnectError, metadata: dict[str, str] | None = None) -> ConnectError:
    """Give an error of the RPC library the `ErrorInfo` that every error of the contract carries.

    Args:
        error: The error; one that has details already is returned as it is.
        metadata: Facts for programs.
    """
    if error.details:
        return error
    reason = _FOREIGN.get(error.code, errors.RunedError.reason)
    return ConnectError(error.code, error.message, [_detail(ErrorInfo(domain=DOMAIN, reason=reason, metadata=metadata or {}))])


def _detail(message: Message) -> ErrorDetail:
    # connectrpc packs details by its own protobuf runtime; ours is Google's, so the packing is done here.
    return ErrorDetail(Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString()))
