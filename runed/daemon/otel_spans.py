"""Records spans for the exporter of OpenTelemetry's SDK.

A span is handed over once it has ended. Those of the SDK's own tracer can be changed meanwhile, with a lock and checked copies
of their attributes. That takes five times as long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runed import tracing
from runed.tracing import Facts
from runed.version import __version__

_propagator = TraceContextTextMapPropagator()

_EMPTY = Context()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FINE = Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("runed", __version__)


class SpanRecorder:
    """Implements `runed.tracing.Recorder`.

    Args:
        provider: Has the sampler, which decides which calls are recorded, and what all spans are about.
        processor: Takes the spans.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self.new_id = provider.id_generator.generate_span_id
        self.resource = provider.resource
        self.take = processor.on_end
        self._new_trace = provider.id_generator.generate_trace_id
        self._sampler = provider.sampler

    def begin(self, name: str, facts: Facts, sent: Mapping[str, str]) -> _Recording | None:
        """Begin the span of a call; see `Recorder.begin`."""
        context = _propagator.extract(sent, _EMPTY) if sent else _EMPTY
        parent = get_current_span(context).get_span_context() if sent else None
        if parent is not None and not parent.is_valid:
            parent = None
        trace = self._new_trace() if parent is None else parent.trace_id
        decision = self._sampler.should_sample(context, trace, name, SpanKind.SERVER, facts)
        if decision.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        own = SpanContext(trace, self.new_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=decision.trace_state)
        attributes = {**facts, **(decision.attributes or {})}
        return _Recording(self, own, parent, name=name, kind=SpanKind.SERVER, facts=attributes, began=time.time_ns())


class _Recording:
    """Implements `runed.tracing.Span`."""

    __slots__ = ("_began", "_context", "_facts", "_kind", "_links", "_name", "_parent", "_recorder")

    def __init__(
        self,
        recorder: SpanRecorder,
        context: SpanContext,
        parent: SpanContext | None,
        *,
        name: str,
        kind: SpanKind,
        facts: Facts,
        began: int,
    ) -> None:
        self._recorder = recorder
        self._context = context
        self._parent = parent
        self._name = name
        self._kind = kind
        self._facts = facts
        self._began = began
        self._links: list[Link] = []

    @property
    def traceparent(self) -> str:
        return f"00-{self._context.trace_id:032x}-{self._context.span_id:016x}-{self._context.trace_flags:02x}"

    def child(self, name: str, facts: Facts, *, age: float = 0.0, asks: bool = False) -> _Recording:
        context, recorder = self._context, self._recorder
        own = SpanContext(
            context.trace_id, recorder.new_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=context.trace_state
        )
        kind = SpanKind.CLIENT if asks else SpanKind.INTERNAL
        began = time.time_ns() - int(age * 1e9)
        return _Recording(recorder, own, context, name=name, kind=kind, facts=facts, began=began)

    def link(self, other: tracing.Span) -> None:
        assert isinstance(other, _Recording)
        self._links.append(Link(other._context))  # noqa: SLF001 # of the same class

    def end(self, facts: Facts, *, name: str = "", error: str = "") -> None:
        failure = {"error.type": error} if error else {}
        self._recorder.take(
            ReadableSpan(
                name or self._name,
                self._context,
                self._parent,
                self._recorder.resource,
                {**self._facts, **facts, **failure},
                links=self._links,
                kind=self._kind,
                status=Status(StatusCode.ERROR, error) if error else _FINE,
                start_time=self._began,
                end_time=time.time_ns(),
                instrumentation_scope=_SCOPE,
            )
        )
