"""Records spans by the SDK of OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runed import tracing
from runed.tracing import Facts

_propagator = TraceContextTextMapPropagator()


class SpanRecorder:
    """Implements `runed.tracing.Recorder`.

    Args:
        tracer: Makes spans. Its sampler decides which calls are recorded.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, name: str, facts: Facts, sent: Mapping[str, str]) -> _Recording | None:
        """Begin the span of a call; see `Recorder.begin`."""
        context = _propagator.extract(sent, Context()) if sent else Context()
        span = self._tracer.start_span(name, context, SpanKind.SERVER, facts)
        return _Recording(span, self._tracer) if span.is_recording() else None


class _Recording:
    """Implements `runed.tracing.Span`."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, span: Span, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def child(self, name: str, facts: Facts, *, age: float = 0.0, asks: bool = False) -> _Recording:
        context = set_span_in_context(self._span, Context())
        kind = SpanKind.CLIENT if asks else SpanKind.INTERNAL
        began = time.time_ns() - int(age * 1e9)
        return _Recording(self._tracer.start_span(name, context, kind, facts, start_time=began), self._tracer)

    def link(self, other: tracing.Span) -> None:
        assert isinstance(other, _Recording)
        self._span.add_link(other._span.get_span_context())  # noqa: SLF001 # of the same class

    def end(self, facts: Facts, *, name: str = "", error: str = "") -> None:
        if name:
            self._span.update_name(name)
        self._span.set_attributes(facts)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()
