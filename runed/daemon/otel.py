"""Starts and ends the SDK of OpenTelemetry. Only daemons with an endpoint import this."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client.metrics_core import Metric

from runed import tracing
from runed.bootstrap.proxies import is_this_machine
from runed.daemon.otel_encoding import encode
from runed.daemon.otel_metrics import translate
from runed.daemon.otel_spans import SpanRecorder
from runed.log import get_logger
from runed.metrics import Metrics
from runed.urls import printable_url
from runed.version import __version__

_LAST_SECONDS = 2.0
"""Seconds for what is still to be sent when the daemon ends."""

_LAST_SECONDS_OF_TROUBLE = 0.2
"""The same, if the last request failed."""

_PAUSE = 60.0
"""Least seconds between two lines about a collector that does not take what is sent."""

_MOST_DIGITS = 9
"""Most digits of an interval in milliseconds. A longer one is a slip, and no thread could wait for so long."""

_READ_SECONDS = 10.0
"""Seconds that the event loop may take to read the metrics."""

_ANSWER_BYTES = 4096
"""Most bytes of an answer that are read."""

_SDK, _QUEUE = "opentelemetry", "opentelemetry.sdk._shared_internal"
"""The loggers of the SDK, and of its queue of spans."""

_log = get_logger(__name__)


class Exporter:
    """Records calls and sends what is recorded. Must be made inside the event loop that counts.

    Args:
        metrics: The metrics to send, every `OTEL_METRIC_EXPORT_INTERVAL` milliseconds.
        tell: Is told after each request what keeps the collector from taking it, or "".
    """

    def __init__(self, metrics: Metrics, tell: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._complaints = complaints = _Complaints(self._loop)

        def report(problem: str) -> None:
            complaints.reason = problem
            tell(f"traces and metrics do not reach the collector: {problem}" if problem else "")

        logging.getLogger(_SDK).handlers = [complaints]
        logging.getLogger(_SDK).propagate = False
        _complain()
        self._ended = threading.Event()
        own: dict[str, str | int] = {"service.name": "runed", "service.version": __version__, "process.pid": os.getpid()}
        self._resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._provider: TracerProvider | None = None
        self._sender: threading.Thread | None = None
        is_off = _is("OTEL_SDK_DISABLED", "true")
        if not is_off and not _is("OTEL_TRACES_EXPORTER", "none"):
            self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            # It takes no encoder as an argument. A later SDK that no longer looks here would encode by its own one.
            trace_exporter.encode_spans = encode  # type: ignore[attr-defined, assignment] # as above
            processor = BatchSpanProcessor(trace_exporter.OTLPSpanExporter(session=_Session(report)))
            self._provider.add_span_processor(processor)  # which is ended with it
            tracing.use(SpanRecorder(self._provider, processor))
        if not is_off and not _is("OTEL_METRICS_EXPORTER", "none"):
            self._exporter = OTLPMetricExporter(session=_Session(report))
            self._sender = threading.Thread(target=self._send_metrics, name="runed-otlp", daemon=True)
            self._sender.start()
        _log.info("sending to OpenTelemetry", traces=self._provider is not None, metrics=self._sender is not None)

    async def stop(self) -> None:
        """Send what is left, for `_LAST_SECONDS` at most. A collector that took nothing before gets less time."""
        tracing.use(None)
        self._ended.set()
        # Threads of the event loop would be waited for when it ends.
        ended = asyncio.Event()
        threading.Thread(target=self._end, args=[ended], name="runed-otlp-end", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS_OF_TROUBLE if self._complaints.reason else _LAST_SECONDS):
                await ended.wait()

    def _end(self, ended: asyncio.Event) -> None:
        if self._provider is not None:
            self._provider.shutdown()
        if self._sender is not None:
            self._sender.join()
        with contextlib.suppress(RuntimeError):  # the event loop has not waited
            self._loop.call_soon_threadsafe(ended.set)

    def _send_metrics(self) -> None:
        interval = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
        began = time.time_ns()
        ended = False
        while not ended:
            ended = self._ended.wait(interval)
            try:
                reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
                self._exporter.export(translate(reading.result(_READ_SECONDS), self._resource, began))
            except Exception:  # the next time may be better, and the daemon serves on
                logging.getLogger(_SDK).exception("metrics were not sent")

    async def _read(self) -> list[Metric]:
        return self._metrics.collect()


class _Complaints(logging.Handler):
    """Writes what the SDK complains of, now and then: while a collector is away, it does so every few seconds.

    Args:
        loop: Ends the pause after each line.

    Attributes:
        reason: What was wrong with the last request, or "".
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.reason = ""
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of the SDK. Its message has addresses and status codes, and nothing of a call."""
        # By the level, since the SDK complains of each span that it drops, and to make a record takes as long as the span.
        for name in (_SDK, _QUEUE):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._loop.call_later, _PAUSE, _complain)
        complaint = record.getMessage()[:500]
        _log.warning("not everything reaches the collector of OpenTelemetry", complaint=complaint, reason=self.reason)


def _complain() -> None:
    """Let the SDK complain of errors, and of spans that it drops."""
    logging.getLogger(_SDK).setLevel(logging.ERROR)
    logging.getLogger(_QUEUE).setLevel(logging.WARNING)


class _Session(requests.Session):
    """Sends to the collector.

    Args:
        report: Is told what was wrong with each request, in words for people, and "" if it was taken.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__()
        self._report = report
        self.stream = True
        # Like everything of runed, it asks no proxy for this machine.
        self.trust_env = not is_this_machine(urlsplit(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]).hostname or "")

    def send(self, request: requests.PreparedRequest, **how: Any) -> requests.Response:  # noqa: ANN401 # as of the class
        """Send a request, and read the beginning of the answer alone. It says nothing that is used, and may have no end.

        Raises:
            RequestException: There is no answer, or a redirect. The SDK does not follow it, and takes it for a success.
        """
        url = printable_url(request.url or "")
        try:
            with super().send(request, **how) as response:
                response.raw.read(_ANSWER_BYTES)  # a connection is used again if its answer was read to the end
        except Exception as error:
            self._report(f"{url}: {_innermost(error)}")
            raise
        taken = response.ok and not response.is_redirect
        self._report("" if taken else f"{url} answers {response.status_code} {response.reason}")
        if response.is_redirect:
            raise requests.RequestException(f"it leads to {printable_url(response.headers['location'])}; set that address")
        return response


def _innermost(error: BaseException) -> BaseException:
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _is(variable: str, value: str) -> bool:
    return os.environ.get(variable, "").strip().lower() == value


def _milliseconds(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return max(int(value), 100) if value.isdecimal() and len(value) <= _MOST_DIGITS else otherwise
