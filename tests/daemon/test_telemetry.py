"""Traces and metrics reach a real collector of OpenTelemetry. One that is away holds nothing up."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import runed
from runed.extras import install_command
from tests.support import RunningDaemon, wait_until

ROOT = Path(__file__).parents[2]
SECRET = "nobody may read this sentence"
APPLICATION = trace.SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False, trace_flags=trace.TraceFlags(1)
)

Start = Callable[..., RunningDaemon]


class Collector:
    """The receiver of the collector, in a process of its own.

    Attributes:
        lines: What it got, in the order of the requests.
        url: Where it listens.
    """

    def __init__(self) -> None:
        program = ROOT / "build" / "collector"
        assert program.exists(), f"{program} is missing: run `make setup`"
        self.lines: list[str] = []
        self._process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://{self._process.stdout.readline().strip()}"
        self._thread = threading.Thread(target=lambda: self.lines.extend(self._process.stdout or ()))
        self._thread.start()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def spans(self) -> list[dict[str, Any]]:
        """Return all spans, each with its attributes as `facts`."""
        found = []
        for document in self._documents("traces"):
            for resource in document["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    found += [span | {"facts": facts(span)} for span in scope["spans"]]
        return found

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the last state of all metrics, by name."""
        return {
            metric["name"]: metric
            for document in self._documents("metrics")
            for resource in document["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
        }

    def _documents(self, kind: str) -> list[Any]:
        return [json.loads(line.removeprefix(kind)) for line in list(self.lines) if line.startswith(kind)]


def facts(item: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in item.get("attributes", [])}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def quick(url: str) -> dict[str, str]:
    """Return the variables for an endpoint that gets everything soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }


def sending(daemon: RunningDaemon) -> RunningDaemon:
    """Wait until a daemon sends."""
    daemon.wait_for("STATUS_OK")
    wait_until(lambda: "sending to OpenTelemetry" in daemon.log(), timeout=60, what="the begin of the sending")
    return daemon


def test_the_way_of_each_kind_of_call_is_traced_and_no_text_is(start_daemon: Start, collector: Collector) -> None:
    daemon = sending(start_daemon(**quick(collector.url)))
    with (
        trace.use_span(trace.NonRecordingSpan(APPLICATION)),
        runed.connect(socket_path=daemon.socket) as client,
    ):
        client.embed(SECRET)
        client.embed(SECRET)
        client.embed_batch([f"{SECRET} {index}" for index in range(20)])
        list(client.embed_stream([("a", f"{SECRET} streamed")]))
        with pytest.raises(runed.RunedError):
            client.embed(SECRET, model=f"{SECRET} as a model")

        async def embed() -> None:
            async with await runed.connect_async(socket_path=daemon.socket) as other:
                await other.embed(f"{SECRET} once more")

        asyncio.run(embed())
    with daemon.http() as http:
        assert http.post("/v1/embeddings", json={"input": f"{SECRET} of OpenAI", "encoding_format": "base64"}).is_success

    def calls() -> list[dict[str, Any]]:
        return [span for span in collector.spans() if "gen_ai.operation.name" in span["facts"]]

    wait_until(lambda: len(calls()) == 7, timeout=60, what="the spans of all calls")
    wait_until(lambda: {"method": "Embed", "code": "not_found"} in methods(collector), timeout=60, what="the metrics of all")
    ordered = sorted(calls(), key=lambda span: int(span["startTimeUnixNano"]))
    model = client_model(daemon)
    assert [span["name"] for span in ordered] == [
        *([f"embeddings {model}"] * 4),
        "embeddings",
        *([f"embeddings {model}"] * 2),
    ]
    own = f"{APPLICATION.trace_id:032x}"
    assert [span["traceId"] == own for span in ordered] == [True] * 6 + [False]
    assert {span["parentSpanId"] for span in ordered[:6]} == {f"{APPLICATION.span_id:016x}"}
    first, again, batch, stream, failed, _, openai = (span["facts"] for span in ordered)
    assert first == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "runed",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.embeddings.dimension.count": "64",
        "gen_ai.usage.input_tokens": first["gen_ai.usage.input_tokens"],
        "rpc.system": "connect_rpc",
        "rpc.service": "runed.v1.RunedService",
        "rpc.method": "Embed",
        "runed.texts": "1",
        "runed.texts.cached": "0",
        "server.address": str(daemon.socket),
    }
    assert (again["runed.texts.cached"], batch["rpc.method"], batch["runed.texts"]) == ("1", "EmbedBatch", "20")
    assert stream["rpc.method"] == "EmbedStream"
    assert (failed["error.type"], "gen_ai.request.model" in failed) == ("UNKNOWN_MODEL", False)
    assert (openai["http.route"], openai["gen_ai.request.encoding_formats"]) == (
        "/v1/embeddings",
        {"values": [{"stringValue": "base64"}]},
    )
    steps = [span for span in collector.spans() if span.get("parentSpanId") == ordered[0]["spanId"]]
    assert sorted(span["name"] for span in steps) == ["micro-batch", "queue"]
    [micro_batch] = [span for span in steps if span["name"] == "micro-batch"]
    assert [link["spanId"] for link in micro_batch["links"]] == [ordered[0]["spanId"]]
    [engine] = [span for span in collector.spans() if span.get("parentSpanId") == micro_batch["spanId"]]
    assert (engine["name"], engine["kind"]) == ("engine", 3)
    metrics = collector.metrics()
    assert metrics["gen_ai.client.embeddings.duration"]["unit"] == "s"
    assert not any("nobody" in line for line in collector.lines)


def methods(collector: Collector) -> list[dict[str, Any]]:
    """Return the labels of the calls that were counted."""
    metric = collector.metrics().get("runed_request_duration_seconds", {"histogram": {}})
    return [facts(point) for point in metric["histogram"].get("dataPoints", [])]


def client_model(daemon: RunningDaemon) -> str:
    model: str = daemon.call("Info")["model"]
    return model


def test_the_last_spans_are_sent_before_the_end(start_daemon: Start, collector: Collector) -> None:
    daemon = sending(start_daemon(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url))  # sends every five seconds
    daemon.call("Embed", {"text": "tea"})
    assert daemon.stop() == 0
    wait_until(lambda: any(span["name"].startswith("embeddings") for span in collector.spans()), timeout=30, what="a span")
    assert "runed_texts" in collector.metrics()


def test_the_endpoint_may_stand_in_the_configuration(start_daemon: Start, home: Path, collector: Collector) -> None:
    (home / "config.json").write_text(json.dumps({"otel_endpoint": collector.url}))
    daemon = sending(
        start_daemon(OTEL_TRACES_SAMPLER="always_off", OTEL_METRIC_EXPORT_INTERVAL="100", OTEL_SERVICE_NAME="mine")
    )
    daemon.call("Embed", {"text": "tea"})
    wait_until(lambda: len(collector.lines) > 2, timeout=30, what="metrics")
    assert not collector.spans()
    assert '{"key":"service.name","value":{"stringValue":"mine"}}' in collector.lines[-1]


@pytest.mark.parametrize("silent", [True, False], ids=["a collector that never answers", "none at all"])
def test_a_collector_that_takes_nothing_holds_nothing_up(start_daemon: Start, *, silent: bool) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if silent:
            sock.listen()
        daemon = start_daemon(**quick(f"http://127.0.0.1:{sock.getsockname()[1]}"), OTEL_BSP_MAX_QUEUE_SIZE="600")
        sending(daemon)
        with runed.connect(socket_path=daemon.socket) as client:
            for _ in range(800):
                client.embed("tea")
        wait_until(lambda: "not everything reaches" in daemon.log(), timeout=60, what="a line about it")
        # The queue may be full, which is logged, before the first request has waited for its answer in vain.
        address = f"the collector: http://127.0.0.1:{sock.getsockname()[1]}/v1/"
        wait_until(lambda: address in "".join(daemon.call("Info").get("restrictions", [])), timeout=60, what="the reason")
        assert daemon.log().count("not everything reaches") < 4  # one a minute, while the SDK complains every second
        assert daemon.stop(timeout=60) == 0


@pytest.mark.parametrize("missing", ["opentelemetry", "requests"])
def test_without_the_packages_one_line_says_so(missing: str, start_daemon: Start, tmp_path: Path) -> None:
    (tmp_path / missing).mkdir()
    (tmp_path / missing / "__init__.py").write_text(f"raise ModuleNotFoundError('there is no {missing}', name='{missing}')")
    daemon = start_daemon(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", PYTHONPATH=str(tmp_path))
    wait_until(lambda: install_command("otel") in daemon.log(), timeout=30, what="the line")
    daemon.wait_for("STATUS_OK")
    assert install_command("otel") in "".join(daemon.call("Info")["restrictions"])
    assert daemon.call("Embed", {"text": "tea"})["vector"]
    assert daemon.log().count("OpenTelemetry") == 1
    assert daemon.stop() == 0
    assert "bug" not in daemon.log()


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, "is no http or https URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL is grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_ cannot be used"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, '"traces":false,"metrics":false'),
    ],
)
def test_variables_that_are_meant_for_others_stop_nothing(env: dict[str, str], line: str, start_daemon: Start) -> None:
    daemon = start_daemon(**env)
    wait_until(lambda: line in daemon.log(), timeout=30, what="the line")
    daemon.wait_for("STATUS_OK")
    assert daemon.call("Embed", {"text": "tea"})["vector"]
