"""Errors as the RPC protocols carry them, with the details that every error of the contract has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from connectrpc.code import Code
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from runed import errors
from runed.api.error_codes import CanceledError, MalformedRequestError, code_of

if TYPE_CHECKING:  # it takes 0.1 s to import, and most daemons answer no error
    from connectrpc.errors import ConnectError, ErrorDetail

DOMAIN = "runed.v1"
"""The domain of every `google.rpc.ErrorInfo` that the daemon sends."""

_FOREIGN: dict[Code, str] = {
    Code.INVALID_ARGUMENT: MalformedRequestError.reason,
    Code.RESOURCE_EXHAUSTED: errors.RequestTooLargeError.reason,
    Code.UNIMPLEMENTED: errors.UnimplementedError.reason,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceededError.reason,
    Code.CANCELED: CanceledError.reason,
    Code.INTERNAL: MalformedRequestError.reason,  # gRPC's code for a broken framing
}
"""Reasons of the errors that the RPC library raises itself, outside of the handler."""


def reason_of_code(code: Code) -> str:
    """Return the reason of an error that the RPC library raises itself."""
    return _FOREIGN.get(code, errors.RunedError.reason)


def error_info(error: errors.RunedError) -> ErrorInfo:
    """Return the detail that names the error's reason."""
    return ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=error.metadata)


def to_connect(error: errors.RunedError) -> ConnectError:
    """Return the error for the wire: code, message, `ErrorInfo` and, if another try can help, `RetryInfo`."""
    details = [_detail(error_info(error))]
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(_detail(retry))
    return connect_error(code_of(error), error.message, details)


def connect_error(code: Code, message: str, details: Iterable[ErrorDetail] = ()) -> ConnectError:
    """Return an error of the RPC library."""
    from connectrpc.errors import ConnectError  # noqa: PLC0415 # as above

    return ConnectError(code, message, details)


def complete(error: ConnectError, metadata: dict[str, str] | None = None) -> ConnectError:
    """Return an error of the RPC library, extended by the `ErrorInfo` that every error of the contract has.

    Args:
        error: The error. If it has details already, it is returned unchanged.
        metadata: Facts for programs.
    """
    if error.details:
        return error
    info = ErrorInfo(domain=DOMAIN, reason=reason_of_code(error.code), metadata=metadata or {})
    return connect_error(error.code, errors.sentence(error.message), [_detail(info)])  # it may repeat a header


def _detail(message: Message) -> ErrorDetail:
    from runed.api.rpc.readable import ReadableDetail  # noqa: PLC0415 # as above

    return ReadableDetail(message)
