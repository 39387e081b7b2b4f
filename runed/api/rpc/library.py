"""The services as the RPC library serves them. Importing the library takes 0.1 s, and ordinary calls do without it."""

from __future__ import annotations

from typing import Any

from runed_proto.grpc.health.v1.health_connect import HealthASGIApplication
from runed_proto.grpc.reflection.v1.reflection_connect import ServerReflectionASGIApplication
from runed_proto.grpc.reflection.v1alpha.reflection_connect import (
    ServerReflectionASGIApplication as AlphaServerReflectionASGIApplication,
)
from runed_proto.runed.v1.runed_connect import RunedServiceASGIApplication

from runed.api.rpc.codecs import CODECS, BatchWriter
from runed.api.rpc.inflating import Gzip
from runed.api.rpc.observation import Observer
from runed.api.rpc.refusals import Application

_APPLICATIONS: dict[str, Any] = {
    "runed.v1.RunedService": RunedServiceASGIApplication,
    "grpc.health.v1.Health": HealthASGIApplication,
    "grpc.reflection.v1.ServerReflection": ServerReflectionASGIApplication,
    "grpc.reflection.v1alpha.ServerReflection": AlphaServerReflectionASGIApplication,
}
"""The generated application of each service, by its full name."""


def build_library(servicers: dict[str, Any], observer: Observer) -> dict[str, Application]:
    """Build the application of each service.

    Args:
        servicers: The implementation of each service, by its full name.
        observer: Sees each call, and has the limit of its messages.

    Returns:
        The applications, by the same names.
    """
    options: dict[str, Any] = {
        "interceptors": [observer, BatchWriter()],
        "read_max_bytes": observer.max_request_bytes,
        "codecs": CODECS,
        "compressions": [Gzip()],
    }
    return {name: _APPLICATIONS[name](servicer, **options) for name, servicer in servicers.items()}
