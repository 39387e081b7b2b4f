"""The Python client; `runed` shows the names of this package.

It imports nothing of the server side. A name is imported when it is first used, so that a blocking program loads no asyncio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runed.client.async_client import AsyncClient, connect_async
    from runed.client.client import Client, connect
    from runed.client.options import EmbedOptions, Lane, Role, Truncate
    from runed.client.stubs import http_client, http_client_async
    from runed.client.types import (
        CentroidSet,
        Embedding,
        Health,
        Info,
        LaneHealth,
        Model,
        ModelKind,
        Phase,
        RerankResult,
        Status,
        Vectors,
    )

__all__ = [
    "AsyncClient",
    "CentroidSet",
    "Client",
    "EmbedOptions",
    "Embedding",
    "Health",
    "Info",
    "Lane",
    "LaneHealth",
    "Model",
    "ModelKind",
    "Phase",
    "RerankResult",
    "Role",
    "Status",
    "Truncate",
    "Vectors",
    "connect",
    "connect_async",
    "http_client",
    "http_client_async",
]

_MODULES = {
    "async_client": ("AsyncClient", "connect_async"),
    "client": ("Client", "connect"),
    "options": ("EmbedOptions", "Lane", "Role", "Truncate"),
    "stubs": ("http_client", "http_client_async"),
    "types": (
        "CentroidSet",
        "Embedding",
        "Health",
        "Info",
        "LaneHealth",
        "Model",
        "ModelKind",
        "Phase",
        "RerankResult",
        "Status",
        "Vectors",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"runed.client.{module}"), name)
    raise AttributeError(f"module 'runed.client' has no attribute {name!r}")
