"""The engines, by their names for people."""

from __future__ import annotations

LLAMA_SERVER, ONNX_RUNTIME = "llama-server", "ONNX Runtime"
"""Names with which a sentence can begin."""

ONNX_VERSIONS = "onnxruntime-"
"""Start of each version of ONNX Runtime, as in "onnxruntime-1.32.0 (graph 1)". `llama-server` begins its own with a number."""


def engine_name(version: str) -> str:
    """Return the engine of a version, as `Info.engine_version` has it."""
    return ONNX_RUNTIME if version.startswith(ONNX_VERSIONS) else LLAMA_SERVER
