"""What every call passes through: its error becomes one of the contract, and an embedding leaves one line in the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

from runed.api.rpc import error_codes as wire
from runed.domain.requests import Embedding, Lane
from runed.errors import RunedError
from runed.log import describe_exception, get_logger

_EMBEDDING_METHODS = {"Embed", "EmbedBatch", "EmbedStream"}

_log = get_logger(__name__)


@dataclass(slots=True)
class Call:
    """What is logged of one call.

    Attributes:
        lane: The lane that was asked for, None if it was left to the engine.
        texts: The number of texts that were read.
        tokens: The number of tokens of those that were embedded.
        hits: The number of texts whose vector was there already, in the cache or in flight.
        truncated: The number of texts of which something was cut off.
        refused: The number of texts that have an error of their own in the answer.
        started: When the call began, in seconds of the monotonic clock.
    """

    lane: Lane | None = None
    texts: int = 0
    tokens: int = 0
    hits: int = 0
    truncated: int = 0
    refused: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, outcomes: Iterable[Embedding | RunedError]) -> None:
        """Count what became of texts."""
        for outcome in outcomes:
            if isinstance(outcome, RunedError):
                self.refused += 1
            else:
                self.tokens += outcome.tokens
                self.hits += outcome.cached
                self.truncated += outcome.truncated


_call: ContextVar[Call] = ContextVar("runed_call")


def current_call() -> Call:
    """Give the call that the current task serves."""
    return _call.get()


@contextmanager
def logged_call(method: str) -> Iterator[Call]:
    """Serve an embedding call that does not come by the RPC library; it leaves the same line in the log.

    Args:
        method: How the log is to call it.
    """
    call = Call()
    code = "ok"
    try:
        yield call
    except RunedError as error:
        code = wire.code_of(error).value
        raise
    except Exception:
        code = Code.INTERNAL.value
        raise
    except BaseException:  # a cancellation
        code = Code.CANCELED.value
        raise
    finally:
        _log_call(method, call, code)


class Observer:
    """A metadata interceptor of connectrpc: sees every call, also those that fail before or beside the handler.

    Args:
        max_request_bytes: The limit that is told when a message is too large.
    """

    def __init__(self, *, max_request_bytes: int) -> None:
        self._max_request_bytes = max_request_bytes

    async def on_start(self, ctx: RequestContext[Any, Any]) -> Call:
        """Begin a call."""
        call = Call()
        _call.set(call)  # seen by this request's task alone: the server runs each request in a task of its own
        return call

    async def on_end(self, token: Call, ctx: RequestContext[Any, Any], error: Exception | None, /) -> None:
        """End a call.

        Raises:
            ConnectError: The error as the caller is to see it.
        """
        answer = None if error is None else self._answer(error, ctx.method.name)
        if ctx.method.name in _EMBEDDING_METHODS:
            _log_call(ctx.method.name, token, "ok" if answer is None else answer.code.value)
        if answer is not None and answer is not error:
            raise answer from None

    def _answer(self, error: Exception, method: str) -> ConnectError:
        if isinstance(error, RunedError):
            return wire.to_connect(error)
        if isinstance(error, ConnectError):
            if error.code is Code.RESOURCE_EXHAUSTED and not error.details:
                limit = self._max_request_bytes
                error = ConnectError(error.code, f"the request has more than the limit of {limit} bytes; send several requests")
                return wire.complete(error, {"limit": str(limit)})
            return wire.complete(error)
        _log.error("call failed unexpectedly", method=method, **describe_exception(error))
        return wire.to_connect(RunedError("the daemon failed at this call; its log says where, please report it"))


def _log_call(method: str, call: Call, code: str) -> None:
    _log.info(
        "embedding call",
        method=method,
        lane="auto" if call.lane is None else call.lane.value,
        texts=call.texts,
        tokens=call.tokens,
        hits=call.hits,
        truncated=call.truncated,
        refused=call.refused,
        duration_ms=round((time.monotonic() - call.started) * 1000, 1),
        code=code,
    )
