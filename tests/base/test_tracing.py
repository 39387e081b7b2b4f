"""The way of a call is recorded by OpenTelemetry's SDK: the call, its wait, its micro-batch and the engine. No text is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from runed import tracing
from runed.daemon.otel_spans import SpanRecorder
from runed.errors import QueueFullError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ITS_ID = 0xB7AD6B7169203331


@dataclass
class Text:
    """A text of a micro-batch."""

    callers: tuple[tracing.Span, ...]
    since: float = 0.0
    tokens: int = 3


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """All that is recorded."""
    exporter = InMemorySpanExporter()
    record(exporter)
    yield exporter
    tracing.use(None)


def record(exporter: InMemorySpanExporter, sampler: Sampler | None = None) -> None:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    tracing.use(SpanRecorder(provider, SimpleSpanProcessor(exporter)))


def arrive(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Let a request arrive, and return the headers that are left of it."""
    scope = {"headers": [(b"host", b"runed"), *headers]}
    tracing.arrive(scope)
    return scope["headers"]


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number


async def call(*headers: tuple[bytes, bytes], texts: int = 1) -> tracing.Span | None:
    """Serve a call whose texts make a micro-batch of their own."""
    assert arrive(*headers) == [(b"host", b"runed")]
    span = tracing.begin("embeddings", {"a": 1})
    waiting = [Text(tracing.callers()) for _ in range(texts)]
    with tracing.micro_batch("m", waiting, 2.0), tracing.engine(woken=True):
        pass
    if span is not None:
        span.end({"b": 2}, name="embeddings m")
    return span


async def test_the_way_of_a_call_is_a_tree_below_the_span_of_its_client(spans: InMemorySpanExporter) -> None:
    await asyncio.create_task(call((b"traceparent", PARENT.encode()), (b"tracestate", b"a=b"), texts=2))
    found = by_name(spans)
    assert set(found) == {"queue", "micro-batch", "engine", "embeddings m"}
    top, wait, batch, engine = (found[name] for name in ("embeddings m", "queue", "micro-batch", "engine"))
    assert top.parent is not None
    assert top.parent.span_id == ITS_ID
    assert top.kind is SpanKind.SERVER
    assert dict(top.attributes or {}) == {"a": 1, "b": 2}
    assert wait.parent is not None
    assert wait.parent.span_id == span_id(top)
    assert batch.parent is not None
    assert batch.parent.span_id == span_id(top)
    assert dict(batch.attributes or {}) == {tracing.MODEL: "m", "runed.texts": 2, tracing.TOKENS: 6}
    assert engine.parent is not None
    assert engine.parent.span_id == span_id(batch)
    assert engine.kind is SpanKind.CLIENT
    assert dict(engine.attributes or {}) == {"runed.engine.woken": True}
    assert {span.context.trace_id for span in found.values() if span.context} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert wait.start_time is not None
    assert wait.end_time is not None
    assert wait.end_time - wait.start_time >= 2_000_000_000


async def test_a_micro_batch_is_linked_to_all_of_its_calls_also_to_one_that_joins_late(spans: InMemorySpanExporter) -> None:
    async def begin() -> tracing.Span:
        span = tracing.begin("embeddings", {})
        assert span is not None
        return span

    calls = [await asyncio.create_task(begin()) for _ in range(4)]
    waiting = [Text((calls[0],)), Text((calls[1], calls[0])), Text((calls[2],))]
    with tracing.micro_batch("m", waiting, 1.0):
        waiting[2].callers += (calls[3],)
    for each in calls:
        each.end({})
    [batch] = [span for span in spans.get_finished_spans() if span.name == "micro-batch"]
    tops = {span_id(span) for span in spans.get_finished_spans() if span.name == "embeddings"}
    assert len(batch.links) == 4
    assert {link.context.span_id for link in batch.links} == tops
    assert sum(span.name == "queue" for span in spans.get_finished_spans()) == 3


async def test_the_links_of_a_text_that_many_ask_for_are_bounded(spans: InMemorySpanExporter) -> None:
    calls = [tracing.begin("embeddings", {}) for _ in range(500)]
    with tracing.micro_batch("m", [Text(tuple(call for call in calls if call))], 1.0):
        pass
    [batch] = [span for span in spans.get_finished_spans() if span.name == "micro-batch"]
    assert len(batch.links) == tracing.MOST_CALLERS


async def test_an_error_is_told_by_its_reason_alone(spans: InMemorySpanExporter) -> None:
    span = tracing.begin("embeddings", {})
    assert span is not None
    with (
        pytest.raises(QueueFullError),
        tracing.micro_batch("m", [Text((span,))], 1.0),
        tracing.engine(woken=False),
    ):
        raise QueueFullError("a secret")
    span.end({}, error="QUEUE_FULL")
    for each in spans.get_finished_spans():
        if each.name != "queue":
            assert each.status.status_code is StatusCode.ERROR
            assert (each.attributes or {})["error.type"] == "QUEUE_FULL"
            assert "secret" not in each.to_json()


async def test_the_sampler_decides_and_its_parent_before_it(spans: InMemorySpanExporter) -> None:
    record(spans, ParentBased(ALWAYS_OFF))
    assert await asyncio.create_task(call()) is None
    assert not spans.get_finished_spans()
    assert await asyncio.create_task(call((b"traceparent", PARENT.encode()))) is not None
    assert len(spans.get_finished_spans()) == 4
    assert await asyncio.create_task(call((b"traceparent", PARENT[:-1].encode() + b"0"))) is None


@pytest.mark.parametrize("value", [b"", b"junk", b"\xff", b"00-0-0-01", PARENT.encode() * 20, b"0" * 100_000])
async def test_a_header_that_names_no_span_begins_a_trace(value: bytes, spans: InMemorySpanExporter) -> None:
    await asyncio.create_task(call((b"traceparent", value)))
    assert by_name(spans)["embeddings m"].parent is None


async def test_a_task_of_a_call_that_has_ended_records_nothing_for_it(spans: InMemorySpanExporter) -> None:
    span = tracing.begin("embeddings", {})
    assert span is not None
    span.end({})
    with tracing.micro_batch("m", [Text(())], 1.0), tracing.engine(woken=False):
        assert tracing.headers() == {}
    assert len(spans.get_finished_spans()) == 1


async def test_another_server_is_told_the_span(spans: InMemorySpanExporter) -> None:
    assert tracing.headers() == {}
    span = tracing.begin("embeddings", {})
    assert span is not None
    assert tracing.headers() == {"traceparent": span.traceparent}
    span.end({})
    context = spans.get_finished_spans()[0].context
    assert context is not None
    assert span.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


async def test_without_a_recorder_nothing_happens_and_the_headers_still_go() -> None:
    assert await asyncio.create_task(call((b"traceparent", PARENT.encode()))) is None
    assert tracing.callers() == ()
    assert arrive() == [(b"host", b"runed")]
