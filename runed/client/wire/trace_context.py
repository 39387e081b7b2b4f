"""The headers that name the span of the application, so that the daemon's spans become a part of its trace."""

from __future__ import annotations

import re
import sys

_NAMES = ("traceparent", "tracestate")
_VALUE = re.compile(r"[ -~]{1,512}")


def trace_headers() -> dict[str, str]:
    """Return the headers for the present span of OpenTelemetry; none if the application does not use that."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.propagate import inject  # noqa: PLC0415 # the application has it, and few have

    found: dict[str, str] = {}
    inject(found)
    return {name: value for name in _NAMES if (value := found.get(name)) and _VALUE.fullmatch(value)}
