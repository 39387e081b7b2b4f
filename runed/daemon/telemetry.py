"""Sends traces and metrics to a collector of OpenTelemetry, if `OTEL_EXPORTER_OTLP_ENDPOINT` and `runed[otel]` are there.

The collector may be away or slow: threads of their own send, and what they cannot send in time is dropped.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from runed.errors import printable
from runed.extras import install_command
from runed.log import describe_exception, get_logger
from runed.metrics import Metrics
from runed.settings import Settings
from runed.urls import is_web_url

_PROTOCOL = "http/protobuf"

_NOTHING = "no traces and metrics are sent"

_log = get_logger(__name__)


@asynccontextmanager
async def exporting(settings: Settings, metrics: Metrics, told: list[str]) -> AsyncIterator[None]:
    """Send traces and metrics for the length of the block. The block does not wait for the beginning.

    Args:
        settings: The settings, with an endpoint.
        metrics: The metrics to send.
        told: What the daemon tells of its limits. Gets a sentence while nothing can be sent.
    """
    others = tuple(told)

    def tell(problem: str) -> None:
        told[:] = [*others, problem] if problem else others

    starting = asyncio.create_task(_start(settings, metrics, tell))
    try:
        yield
    finally:
        if not starting.done():
            starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled() and (exporter := starting.result()) is not None:
            await exporter.stop()


async def _start(settings: Settings, metrics: Metrics, tell: Callable[[str], None]) -> Any:  # noqa: ANN401 # its module needs the extra
    if (problem := _problem(settings.otel_endpoint)) is not None:
        tell(f"{_NOTHING}: {problem}")
        _log.warning(f"{_NOTHING}: {problem}")
        return None
    # The SDK reads its variables itself, and a value of config.json is not among them.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", settings.otel_endpoint)
    try:
        # In a thread, since that takes a quarter of a second.
        module = await asyncio.to_thread(importlib.import_module, "runed.daemon.otel")
    except ImportError as error:
        if (error.name or "").startswith("runed"):
            raise
        problem = (
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the packages of OpenTelemetry are not installed; run "
            f"`{install_command('otel')}` where this runed is"
        )
        tell(f"{_NOTHING}: {problem}")
        _log.warning(f"{_NOTHING}: {problem}", missing=error.name)
        return None
    try:
        return module.Exporter(metrics, tell)
    except Exception as error:  # noqa: BLE001 # a variable of OTEL_ that the SDK cannot use must not stop the daemon
        problem = "the variables that begin with OTEL_ cannot be used"
        tell(f"{_NOTHING}: {problem}; the log says why")
        _log.error(f"{_NOTHING}: {problem}", **describe_exception(error))
        return None


def _problem(endpoint: str) -> str | None:
    """Return the reason why nothing can be sent to an endpoint, or None. Applications share the variables of OpenTelemetry."""
    if not is_web_url(endpoint):
        return "OTEL_EXPORTER_OTLP_ENDPOINT is no http or https URL; set one, such as http://127.0.0.1:4318"
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL)
    if protocol != _PROTOCOL:
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is {printable(protocol)}; set {_PROTOCOL}, which collectors take at port 4318"
    return None
