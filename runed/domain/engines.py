"""The engines, by their names for people."""

from __future__ import annotations

from runed.settings import ONNX_VERSIONS

__all__ = ["LLAMA_SERVER", "ONNX_RUNTIME", "ONNX_VERSIONS", "engine_name"]

LLAMA_SERVER, ONNX_RUNTIME = "llama-server", "ONNX Runtime"
"""Names with which a sentence can begin."""


def engine_name(version: str) -> str:
    """Return the engine of a version, as `Info.engine_version` has it."""
    return ONNX_RUNTIME if version.startswith(ONNX_VERSIONS) else LLAMA_SERVER
