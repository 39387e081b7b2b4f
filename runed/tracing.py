"""Traces of calls: where the time of a call went, from its head to its answer. They never hold a text.

Nothing is recorded until `use` was called, and to look for that costs next to nothing. `runed.daemon.otel_spans` records for
OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeAlias

from runed.errors import RunedError

Facts: TypeAlias = Mapping[str, str | int | bool | Sequence[str]]
"""Attributes of a span, by the names of OpenTelemetry's conventions, or names of our own that begin with "runed."."""

MODEL = "gen_ai.request.model"
"""The name of the attribute that has the model."""

TOKENS = "gen_ai.usage.input_tokens"
"""The name of the attribute that has the number of tokens."""

MOST_CALLERS = 128
"""Most calls that a micro-batch is linked to, and that are kept for a text."""

_HEADERS = (b"traceparent", b"tracestate")
"""Headers with which a client names its own span (W3C Trace Context)."""

_LONGEST = 512
"""Most characters of such a header."""


class Span(Protocol):
    """A step of a call that is being recorded."""

    @property
    def traceparent(self) -> str:
        """The header that names this span to another server."""
        ...

    def child(self, name: str, facts: Facts, *, age: float = 0.0, asks: bool = False) -> Span:
        """Begin a step of this step.

        Args:
            name: Its name.
            facts: Its attributes.
            age: Seconds since its beginning.
            asks: Whether another process is asked.
        """
        ...

    def link(self, other: Span) -> None:
        """Tell that this step also served another one than its parent."""
        ...

    def end(self, facts: Facts, *, name: str = "", error: str = "") -> None:
        """End the step.

        Args:
            facts: Further attributes.
            name: Its final name; "" keeps the first one.
            error: The reason of the failure, or "".
        """
        ...


class Recorder(Protocol):
    """Records spans."""

    def begin(self, name: str, facts: Facts, sent: Mapping[str, str]) -> Span | None:
        """Begin the span of a call, or return None if this call is not recorded.

        Args:
            name: Its name.
            facts: Its attributes.
            sent: The headers of the client that name its span.
        """
        ...


class Waiting(Protocol):
    """A text of a micro-batch.

    Attributes:
        callers: The spans of the calls that wait for it.
        since: The time since which it waited, in seconds of the event loop's clock.
        tokens: The number of its tokens.
    """

    callers: tuple[Span, ...]
    since: float
    tokens: int


_recorder: Recorder | None = None

_sent: ContextVar[Mapping[str, str]] = ContextVar("runed_sent", default={})  # noqa: B039 # nobody changes it
"""The headers that name the client's span, of the request that the current task serves."""

_current: ContextVar[Span | None] = ContextVar("runed_span", default=None)
"""The span that the current task works for."""


def use(recorder: Recorder | None) -> None:
    """Record the calls that begin from now on; None records none."""
    global _recorder  # noqa: PLW0603 # a process has one daemon, and a call passes through many rooms
    _recorder = recorder


def is_on() -> bool:
    """Return whether calls are recorded. Without that, nobody need gather what is told of them."""
    return _recorder is not None


def arrive(scope: MutableMapping[str, Any]) -> None:
    """Take the headers that name a client's span out of a request. They differ each time, and what follows from a head is kept.

    Args:
        scope: The request, of ASGI.
    """
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    for name, _ in headers:
        if name in _HEADERS:
            break
    else:
        return
    if _recorder is not None:
        sent = [(name.decode(), value.decode("latin-1")) for name, value in headers if name in _HEADERS]
        _sent.set({name: value for name, value in sent if len(value) <= _LONGEST})
    scope["headers"] = [header for header in headers if header[0] not in _HEADERS]


def begin(name: str, facts: Facts) -> Span | None:
    """Begin the span of a call that the current task serves. Return None if it is not recorded."""
    if _recorder is None:
        return None
    span = _recorder.begin(name, facts, _sent.get())
    _current.set(span)
    return span


def callers() -> tuple[Span, ...]:
    """Return the span of the call that the current task serves, if it is recorded."""
    span = _current.get()
    return () if span is None else (span,)


def headers() -> dict[str, str]:
    """Return the headers that tell another server what the current task works for."""
    span = _current.get()
    return {} if span is None else {"traceparent": span.traceparent}


@contextmanager
def micro_batch(model: str, texts: Sequence[Waiting], now: float) -> Iterator[None]:
    """Record a micro-batch: the wait of each of its calls, and its own time, which is linked to all of its calls.

    It is a child of the first call. So all of the way of a call that is alone is in one trace.

    Args:
        model: The name of the model.
        texts: The texts.
        now: The time, in seconds of the event loop's clock.
    """
    waits = _waits(texts)
    if not waits:
        # This task may have been made for a call that has ended.
        with _working_for(None):
            yield
        return
    for caller, since in waits.items():
        caller.child("queue", {}, age=now - since).end({})
    span = next(iter(waits)).child("micro-batch", {MODEL: model, "runed.texts": len(texts)})
    with _working_for(span, partial(_finish, span, texts)):
        yield


@contextmanager
def engine(*, woken: bool) -> Iterator[None]:
    """Record the time of an engine, for the micro-batch of the current task.

    Args:
        woken: Whether the engine has to start first.
    """
    parent = _current.get()
    span = None if parent is None else parent.child("engine", {"runed.engine.woken": woken}, asks=True)
    with _working_for(span):
        yield


def reason_of(error: BaseException) -> str:
    """Return the reason of an error, for the attribute `error.type`. It quotes nothing."""
    if isinstance(error, RunedError):
        return error.reason
    return RunedError.reason if isinstance(error, Exception) else "CANCELED"


def _waits(texts: Sequence[Waiting]) -> dict[Span, float]:
    """Return the time since which each call has waited."""
    waits: dict[Span, float] = {}
    for text in texts:
        for caller in text.callers:
            waits[caller] = min(waits.get(caller, text.since), text.since)
    return waits


def _finish(span: Span, texts: Sequence[Waiting]) -> Facts:
    """Link a micro-batch to its calls, also to those that have joined meanwhile, and return what is known by now."""
    for caller in islice(_waits(texts), MOST_CALLERS):
        span.link(caller)
    return {TOKENS: sum(text.tokens for text in texts)}


@contextmanager
def _working_for(span: Span | None, finish: Callable[[], Facts] = dict) -> Iterator[None]:
    """Let the current task work for a span until the end of the block, and end the span."""
    token = _current.set(span)
    error = ""
    try:
        yield
    except BaseException as failure:
        error = reason_of(failure)
        raise
    finally:
        _current.reset(token)
        if span is not None:
            span.end(finish(), error=error)
