"""Translates the metrics of `/metrics` for OpenTelemetry. So both tell the same, and nothing is counted twice."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from runed.metrics import REQUEST_SECONDS
from runed.version import __version__

_UNITS = {"_seconds": "s", "_bytes": "By"}

_EMBEDDING = {"Embed", "EmbedBatch", "EmbedStream", "/v1/embeddings", "/api/embed", "/api/embeddings", "/embed"}
"""Methods of calls that embed, whose time is also told by the name of OpenTelemetry's conventions."""

_CUMULATIVE = AggregationTemporality.CUMULATIVE


def translate(families: Iterable[Family], resource: Resource, began: int) -> MetricsData:
    """Return metrics in the form that the SDK sends.

    Args:
        families: The metrics, as Prometheus' library has them.
        resource: What they are about.
        began: The time since which they count, in nanoseconds since 1970.
    """
    now = time.time_ns()
    metrics = [metric for family in families for metric in _metrics(family, began, now)]
    scope = ScopeMetrics(InstrumentationScope("runed", __version__), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metrics(family: Family, began: int, now: int) -> Iterator[Metric]:
    unit = next((unit for end, unit in _UNITS.items() if family.name.endswith(end)), "")
    if family.type == "histogram":
        points = [_histogram(labels, samples, began, now) for labels, samples in _series(family)]
        yield Metric(family.name, family.documentation, unit, Histogram(points, _CUMULATIVE))
        if family.name == REQUEST_SECONDS:
            yield _client_duration(points)
        return
    numbers = [NumberDataPoint(sample.labels, began, now, float(sample.value)) for sample in family.samples]
    if family.type == "counter":
        yield Metric(family.name, family.documentation, unit, Sum(numbers, _CUMULATIVE, is_monotonic=True))
    else:
        yield Metric(family.name, family.documentation, unit, Gauge(numbers))


def _client_duration(points: Sequence[HistogramDataPoint]) -> Metric:
    """Return the time of the calls that embed, as OpenTelemetry's conventions for models name it."""
    renamed = []
    for point in points:
        labels = dict(point.attributes or {})
        if (method := labels.pop("method")) in _EMBEDDING:
            facts = {"gen_ai.operation.name": "embeddings", "gen_ai.provider.name": "runed", "rpc.method": method}
            failure = {} if labels["code"] == "ok" else {"error.type": labels["code"]}
            renamed.append(HistogramDataPoint(**{**vars(point), "attributes": facts | failure}))
    return Metric("gen_ai.client.embeddings.duration", "Time of a call that embeds.", "s", Histogram(renamed, _CUMULATIVE))


def _series(family: Family) -> Iterator[tuple[dict[str, str], list[Sample]]]:
    """Yield the samples of each set of labels of a histogram."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = defaultdict(list)
    for sample in family.samples:
        series[tuple(item for item in sample.labels.items() if item[0] != "le")].append(sample)
    for labels, samples in series.items():
        yield dict(labels), samples


def _histogram(labels: dict[str, str], samples: Sequence[Sample], began: int, now: int) -> HistogramDataPoint:
    bounds = [float(sample.labels["le"]) for sample in samples if "le" in sample.labels]
    upto = [int(sample.value) for sample in samples if "le" in sample.labels]
    total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
    counts = [count - before for count, before in zip(upto, [0, *upto], strict=False)]
    # The extremes are not known, and a NaN would be sent as if it were one.
    return HistogramDataPoint(labels, began, now, upto[-1], total, counts, bounds[:-1], None, None)  # type: ignore[arg-type] # the encoder leaves None out
