"""Reads a user's own ONNX file for the commands about models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runed.errors import SettingsError
from runed.paths import Paths, ensure_private_dir

if TYPE_CHECKING:
    from runed.domain.model import ModelInfo

_LONGEST = 131_072
"""The largest context of the settings."""


def read_onnx(paths: Paths, path: Path, *, pooling: str = "") -> ModelInfo:
    """Check a file as the daemon does, and describe it. For that, a program of its own reads it, which is remembered.

    Args:
        paths: The home, which must exist.
        path: The file.
        pooling: The pooling instead of that of the file, or "".

    Raises:
        SettingsError: ONNX Runtime is not installed.
        ModelFileError: The file, or one beside it, is missing or cannot be used.
        BackendUnavailableError: It could not be read now.
    """
    import asyncio  # noqa: PLC0415 # with the others, what no command without such a file needs

    from runed.backends.onnx.availability import missing  # noqa: PLC0415
    from runed.backends.onnx.description import describe  # noqa: PLC0415
    from runed.backends.onnx.graphs import ensure_graph  # noqa: PLC0415
    from runed.bootstrap.audit import VerifiedFiles  # noqa: PLC0415

    async def read() -> ModelInfo:
        sha256 = await VerifiedFiles(paths, announce=lambda _: None).sha256_of_model(path)
        graph = await ensure_graph(path, sha256, paths, pooling=pooling)
        return describe(path, graph, sha256=sha256, ctx_size=_LONGEST, pooling=pooling)

    if absent := missing():
        raise SettingsError(f"the model {path} is served by ONNX Runtime alone: {absent}")
    ensure_private_dir(paths.cache)
    return asyncio.run(read())
