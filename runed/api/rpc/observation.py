"""The interceptor of every call. It turns errors into those of the contract, counts calls, and logs embeddings."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code
from connectrpc.request import RequestContext

from runed.api.call_log import EMBED, RERANK, Call
from runed.api.error_codes import code_of
from runed.api.host import CountCall, Host
from runed.api.large import let_go
from runed.api.rpc.errors import complete, connect_error, reason_of_code, to_connect
from runed.errors import RunedError, apology
from runed.log import describe_exception, get_logger, log_refusal
from runed.tracing import is_on

if TYPE_CHECKING:  # as in `errors`
    from connectrpc.errors import ConnectError

_OPERATIONS = {"Embed": EMBED, "EmbedBatch": EMBED, "EmbedStream": EMBED, "Rerank": RERANK}
"""What the methods do that are logged and recorded. Others would fill a log: some clients ask for the health every second."""

_log = get_logger(__name__)

_begun: ContextVar[tuple[Call, RequestContext[Any, Any]] | None] = ContextVar("runed_call", default=None)
"""The call that the current task serves, and its context."""


def current_call() -> Call:
    """Return the call that the current task serves."""
    begun = _begun.get()
    assert begun is not None
    return begun[0]


class Observer:
    """A metadata interceptor of connectrpc. It sees every call, also calls that fail outside of the handler.

    Args:
        host: The daemon.
        count: Counts the calls.

    Attributes:
        max_request_bytes: The limit to tell when a message is too large.
    """

    def __init__(self, host: Host, count: CountCall) -> None:
        info = host.info()
        self.max_request_bytes = info.max_request_bytes
        self._address = info.socket_path
        self._count = count

    async def on_start(self, ctx: RequestContext[Any, Any]) -> Call:
        """Begin a call. If it has begun with another context, as a call that `unary` leaves to the library, go on with it."""
        begun = _begun.get()
        call = Call() if begun is None else begun[0]
        if begun is None and is_on() and ctx.method.name in _OPERATIONS:
            grpc = ctx.request_headers.get("content-type", "").startswith("application/grpc")
            call.begin(
                _OPERATIONS[ctx.method.name],
                {
                    "server.address": self._address,
                    "rpc.system": "grpc" if grpc else "connect_rpc",
                    "rpc.service": ctx.method.service_name,
                    "rpc.method": ctx.method.name,
                },
            )
        if begun is not None:
            for ours, before in (
                (ctx.response_headers, begun[1].response_headers),
                (ctx.response_trailers, begun[1].response_trailers),
            ):
                for name, value in before.allitems():
                    ours.add(name, value)
        _begun.set((call, ctx))  # seen by this request's task alone: the server runs each request in a task of its own
        return call

    async def on_end(self, token: Call, ctx: RequestContext[Any, Any], error: Exception | None, /) -> None:
        """End a call.

        Raises:
            ConnectError: The error for the caller.
        """
        method = ctx.method.name
        answer = None if error is None else self._answer(error, method)
        code = "ok" if answer is None else answer.code.value
        reason = "" if error is None or answer is None else _reason(error, answer)
        if method in _OPERATIONS:
            token.end(method, code, reason)
        self._count(method, code, time.monotonic() - token.started, reason, token.reasons)
        if error is not None:
            let_go(error)
        if answer is not None and answer is not error:
            raise answer from None

    def refused(self, error: RunedError, method: str = "other") -> None:
        """Count a call that was turned away before it began.

        Args:
            error: The reason.
            method: The name of its method; "other" if there is no such method.
        """
        self._count(method, code_of(error).value, 0.0, error.reason)

    def _answer(self, error: Exception, method: str) -> ConnectError:
        from connectrpc.errors import ConnectError  # noqa: PLC0415 # as in `errors`

        if isinstance(error, RunedError):
            return to_connect(error)
        if isinstance(error, ConnectError):
            if error.code is Code.RESOURCE_EXHAUSTED and not error.details:
                limit = self.max_request_bytes
                error = connect_error(
                    error.code, f"the request has more than the limit of {limit} bytes; send several requests"
                )
                return complete(error, {"limit": str(limit)})
            return complete(error)
        facts = describe_exception(error)
        log_refusal(_log, "call failed unexpectedly", level=logging.ERROR, kind=f"{method} {facts}", method=method, **facts)
        return to_connect(apology(error))


def _reason(error: Exception, answer: ConnectError) -> str:
    """Return the reason of the error that a caller gets."""
    return error.reason if isinstance(error, RunedError) else reason_of_code(answer.code)
