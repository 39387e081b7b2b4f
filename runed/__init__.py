"""runed: one embedding model per machine, shared by all its processes.

    import runed

    with runed.connect() as client:
        vector = client.embed("hello")

`import runed` alone costs next to nothing: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from runed import errors
from runed.version import __version__

if TYPE_CHECKING:
    from runed.client import (
        AsyncClient,
        CentroidSet,
        Client,
        Embedding,
        EmbedOptions,
        Health,
        Info,
        LaneHealth,
        Model,
        ModelKind,
        Phase,
        RerankResult,
        Status,
        connect,
        connect_async,
        http_client,
        http_client_async,
    )

RunedError = errors.RunedError
RunedWarning = errors.RunedWarning

__all__ = [
    "AsyncClient",
    "CentroidSet",
    "Client",
    "EmbedOptions",
    "Embedding",
    "Health",
    "Info",
    "LaneHealth",
    "Model",
    "ModelKind",
    "Phase",
    "RerankResult",
    "RunedError",
    "RunedWarning",
    "Status",
    "__version__",
    "connect",
    "connect_async",
    "errors",
    "http_client",
    "http_client_async",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'runed' has no attribute {name!r}")
    if os.name == "nt":
        # Before the import, which would fail at `fcntl` with an error that means nothing to a user.
        raise errors.UnsupportedPlatformError(errors.WINDOWS_UNSUPPORTED)
    return getattr(importlib.import_module("runed.client"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
