"""The interceptor of every call. It turns errors into those of the contract, and logs one line for each embedding."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code
from connectrpc.request import RequestContext

from runed.api.call_log import Call
from runed.api.large import let_go
from runed.api.rpc.errors import complete, connect_error, to_connect
from runed.errors import RunedError, apology
from runed.log import describe_exception, get_logger, log_refusal

if TYPE_CHECKING:  # as in `errors`
    from connectrpc.errors import ConnectError

_EMBEDDING_METHODS = {"Embed", "EmbedBatch", "EmbedStream", "Rerank"}

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
        max_request_bytes: The limit to tell when a message is too large.

    Attributes:
        max_request_bytes: As above.
    """

    def __init__(self, *, max_request_bytes: int) -> None:
        self.max_request_bytes = max_request_bytes

    async def on_start(self, ctx: RequestContext[Any, Any]) -> Call:
        """Begin a call. If it has begun with another context, as a call that `unary` leaves to the library, go on with it."""
        begun = _begun.get()
        call = Call() if begun is None else begun[0]
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
        answer = None if error is None else self._answer(error, ctx.method.name)
        if ctx.method.name in _EMBEDDING_METHODS:
            token.log(ctx.method.name, "ok" if answer is None else answer.code.value)
        if error is not None:
            let_go(error)
        if answer is not None and answer is not error:
            raise answer from None

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
