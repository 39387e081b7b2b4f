"""The parts that send to OpenTelemetry: the translation of metrics, and variables of the SDK that are wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="the extra otel is not installed")

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from runed.daemon import otel, otel_encoding
from runed.daemon.otel import Exporter
from runed.daemon.otel_metrics import translate
from runed.daemon.otel_spans import SpanRecorder
from runed.metrics import REQUEST_SECONDS, Metrics


class Kept(SpanProcessor):
    """Keeps the spans that have ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def spans_of_all_kinds() -> list[ReadableSpan]:
    kept = Kept()
    recorder = SpanRecorder(TracerProvider(resource=Resource({"service.name": "mine"}), shutdown_on_exit=False), kept)
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "one=1,two=2"}
    for sent in ({}, parent, {"traceparent": "nonsense"}):
        call = recorder.begin("embeddings", {"rpc.method": "Embed"}, sent)
        assert call is not None
        call.child("queue", {}, age=2.0).end({})
        micro_batch = call.child("micro-batch", {"runed.texts": 2})
        micro_batch.link(call)
        micro_batch.child("engine", {"runed.engine.woken": True}, asks=True).end({}, error="ENGINE_FAILED")
        micro_batch.end({"gen_ai.usage.input_tokens": 7})
        call.end({"gen_ai.request.encoding_formats": ("base64",)}, name="embeddings tea")
    return kept.spans


def test_spans_are_encoded_as_the_sdk_encodes_them() -> None:
    spans = spans_of_all_kinds()
    assert len(spans) == 12
    assert otel_encoding.encode(spans) == encode_spans(spans)
    assert otel_encoding.encode(spans[-1:]) == encode_spans(spans[-1:])


def test_equal_values_of_two_types_keep_their_types() -> None:
    kept = Kept()
    recorder = SpanRecorder(TracerProvider(shutdown_on_exit=False), kept)
    for value in (True, 1, "1"):
        call = recorder.begin("embeddings", {"of some type": value}, {})
        assert call is not None
        call.end({})
    assert otel_encoding.encode(kept.spans) == encode_spans(kept.spans)


def test_the_exporter_of_the_sdk_encodes_by_our_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def encode(spans: list[ReadableSpan]) -> object:
        taken.append(len(spans))
        return otel_encoding.encode(spans)

    monkeypatch.setattr(trace_exporter, "encode_spans", encode)
    exporter = trace_exporter.OTLPSpanExporter("http://127.0.0.1:9", timeout=0.1)
    exporter.export(spans_of_all_kinds())
    assert taken == [12]


class Answering:
    """Answers requests with given bytes, on one connection after the other, as long as the client reads.

    Attributes:
        url: Where it listens.
        connections: The number of connections so far.
    """

    def __init__(self, head: bytes, rest: bytes = b"") -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self.connections = 0
        self._head, self._rest = head, rest
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # `close` was called
            while True:
                connection, _ = self._sock.accept()
                self.connections += 1
                with connection, contextlib.suppress(ConnectionError):
                    while request := connection.recv(1 << 20):
                        if request.startswith(b"POST"):  # the body may come by itself
                            connection.sendall(self._head)
                        while self._rest:
                            connection.sendall(self._rest)
                        if b"close" in self._head:
                            break


def nobody(problem: str) -> None:
    """Be told of a problem."""


def send_twice(
    server: Answering, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None] = nobody
) -> list[SpanExportResult]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    exporter = trace_exporter.OTLPSpanExporter(session=otel._Session(tell))
    try:
        return [exporter.export(spans_of_all_kinds()[:1]) for _ in range(2)]
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call] # of the SDK
        server.close()


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536))
    assert send_twice(server, monkeypatch) == [SpanExportResult.SUCCESS] * 2
    assert server.connections == 2


def test_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\x0a\0")
    assert send_twice(server, monkeypatch) == [SpanExportResult.SUCCESS] * 2
    assert server.connections == 1


def test_a_redirect_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering(b"HTTP/1.1 307 Elsewhere\r\nlocation: /v2\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    problems: list[str] = []
    assert send_twice(server, monkeypatch, problems.append) == [SpanExportResult.FAILURE] * 2
    assert problems[0] == f"{server.url}/v1/traces answers 307 Elsewhere"


def test_histograms_tell_no_extremes_which_nobody_knows() -> None:
    metrics = Metrics()
    metrics.called("Embed", "ok", 0.003)
    [resource] = encode_metrics(translate(metrics.collect(), Resource.get_empty(), 0)).resource_metrics
    found = {each.name: each.histogram for each in resource.scope_metrics[0].metrics if each.HasField("histogram")}
    [point] = found[REQUEST_SECONDS].data_points
    assert (point.count, point.sum, list(point.bucket_counts)[:4]) == (1, 0.003, [0, 0, 1, 0])
    assert {"runed_batch_seconds", "gen_ai.client.embeddings.duration"} <= found.keys()
    for each in found.values():
        for point in each.data_points:
            assert not point.HasField("min")
            assert not point.HasField("max")


@pytest.mark.parametrize("interval", ["9" * 20, "9" * 5000])
async def test_an_interval_of_too_many_digits_does_not_end_the_sending(interval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", interval)
    exporter = Exporter(Metrics(), nobody)
    [sender] = [thread for thread in threading.enumerate() if thread.name == "runed-otlp"]
    sender.join(0.3)
    assert sender.is_alive()
    await exporter.stop()
    sender.join(30)
