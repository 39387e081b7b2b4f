"""runed: one embedding model per machine, shared by all its processes.

    import runed

    with runed.connect() as client:
        vector = client.embed("hello")

`import runed` alone costs next to nothing; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from runed import errors
from runed.version import __version__

if TYPE_CHECKING:
    from runed.client.async_client import AsyncClient, connect_async
    from runed.client.client import Client, connect
    from runed.client.types import CentroidSet, Embedding, Health, Info, LaneHealth, Phase, Status

__all__ = [
    "AsyncClient",
    "CentroidSet",
    "Client",
    "Embedding",
    "Health",
    "Info",
    "LaneHealth",
    "Phase",
    "Status",
    "__version__",
    "connect",
    "connect_async",
    "errors",
]

_MODULES = {
    "AsyncClient": "runed.client.async_client",
    "CentroidSet": "runed.client.types",
    "Client": "runed.client.client",
    "Embedding": "runed.client.types",
    "Health": "runed.client.types",
    "Info": "runed.client.types",
    "LaneHealth": "runed.client.types",
    "Phase": "runed.client.types",
    "Status": "runed.client.types",
    "connect": "runed.client.client",
    "connect_async": "runed.client.async_client",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'runed' has no attribute {name!r}")
    if os.name == "nt":
        # Before the import, which would fail at `fcntl` and say nothing to a user.
        raise errors.UnsupportedPlatformError(errors.WINDOWS_UNSUPPORTED)
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
