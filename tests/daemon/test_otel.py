"""The parts that send to OpenTelemetry: the translation of metrics, and variables of the SDK that are wrong."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.common", reason="the extra otel is not installed")

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource

from runed.daemon.otel import Exporter
from runed.daemon.otel_metrics import translate
from runed.metrics import REQUEST_SECONDS, Metrics


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
    exporter = Exporter(Metrics())
    [sender] = [thread for thread in threading.enumerate() if thread.name == "runed-otlp"]
    sender.join(0.3)
    assert sender.is_alive()
    await exporter.stop()
    sender.join(30)
