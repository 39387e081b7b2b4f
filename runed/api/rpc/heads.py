"""Faults in the head of a request.

The RPC library refuses such a request before any interceptor sees it. Its refusal lacks the reason that every error of the
contract has. It refuses a stream of the Connect protocol without using that protocol, and reports a header that is not text as
a fault of the daemon.
"""

from __future__ import annotations

import re
from functools import lru_cache

from runed.api.error_codes import MalformedRequestError
from runed.api.rpc.refusals import Scope, content_type
from runed.errors import RunedError, UnimplementedError
from runed.server import KNOWN_HEADS, SMALL

_GRPC_TYPE = re.compile(r"application/grpc(-web)?(\+(proto|json))?")

_FORMS: dict[bytes, tuple[re.Pattern[bytes], MalformedRequestError]] = {
    b"connect-protocol-version": (
        re.compile(rb"1"),
        MalformedRequestError("the header Connect-Protocol-Version can only be 1; send that, or leave it out"),
    ),
    b"connect-timeout-ms": (
        re.compile(rb"\d{0,10}"),
        MalformedRequestError("the header Connect-Timeout-Ms is not a number of milliseconds of at most 10 digits"),
    ),
    b"grpc-timeout": (
        re.compile(rb"\d{1,8}[HMSmun]"),
        MalformedRequestError("the header Grpc-Timeout is not a number of at most 8 digits and a unit, H, M, S, m, u or n"),
    ),
}
"""Required form of each header, and the error of a header of another form."""

_OURS = (b"content-", b"connect-", b"grpc-", b"accept-encoding")
"""Beginnings of the names of headers that decide how a request is served."""

_NOT_TEXT = MalformedRequestError("a header that decides how the request is served is not UTF-8; send it in ASCII")
_TWICE = MalformedRequestError(
    "Connect-Protocol-Version, Connect-Timeout-Ms or Grpc-Timeout came twice, and nothing tells which one counts; send it once"
)
_GRPC_METHOD = UnimplementedError("gRPC knows no HTTP method but POST; send that")
_GRPC_CODEC = UnimplementedError(
    "this Content-Type cannot be used for gRPC; send application/grpc+proto or application/grpc+json, for gRPC-Web "
    "application/grpc-web+proto or application/grpc-web+json"
)


def fault_of(scope: Scope) -> RunedError | None:
    """Return the reason to refuse a request for its method or its headers, or None.

    Args:
        scope: The request, of any protocol.
    """
    fault = _known_fault if scope.get(SMALL) else _fault
    return fault(tuple(scope["headers"]), scope["method"], content_type(scope))


def _fault(headers: tuple[tuple[bytes, bytes], ...], method: str, kind: str) -> RunedError | None:
    bound = [name for name, _ in headers if name in _FORMS]
    if len(bound) > len(set(bound)):
        return _TWICE
    for name, value in headers:
        if name in _FORMS and not (form := _FORMS[name])[0].fullmatch(value):
            return form[1]
        if name.startswith(_OURS) and not _is_text(value):
            return _NOT_TEXT
    if kind.startswith("application/grpc"):
        if method != "POST":
            return _GRPC_METHOD
        if not _GRPC_TYPE.fullmatch(kind):
            return _GRPC_CODEC
    return None


_known_fault = lru_cache(KNOWN_HEADS)(_fault)


def without_noise(scope: Scope) -> Scope:
    """Return a request without headers that are not UTF-8. None of them decides how it is served, and the library refuses them.

    Args:
        scope: The request, without a fault.
    """
    if all(value.isascii() for _, value in scope["headers"]):
        return scope
    return scope | {"headers": [(name, value) for name, value in scope["headers"] if _is_text(name + value)]}


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
