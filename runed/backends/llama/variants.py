"""Measures variants of a model, and how far their vectors are from those of the most exact one."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runed.backends.gguf import read_gguf
from runed.backends.likeness import cosine
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.measuring import measure_running, workshop
from runed.backends.llama.profile import built_in_profile
from runed.domain.device import Device
from runed.paths import Paths
from runed.processes import resident_bytes

_COMPARED_TEXTS = 32
"""Texts whose vectors are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantMeasurement:
    """The cost and the vectors of one variant.

    Attributes:
        name: The name of the variant.
        file_bytes: The size of its file.
        memory_bytes: The resident memory of the engine while it serves the variant, without the memory of a device.
        lone_seconds: The median time of a single text.
        texts_per_second: The texts embedded per second, one micro-batch after the other.
        tokens_per_second: The tokens of these texts per second.
        vectors: The vectors of some texts: little-endian float32 values. All variants have those of the same texts.
    """

    name: str
    file_bytes: int
    memory_bytes: int
    lone_seconds: float
    texts_per_second: float
    tokens_per_second: float
    vectors: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Closeness:
    """The cosines of the vectors of a variant to those of another one. NaN if the two cannot be compared."""

    mean: float
    least: float


def measure_variant(
    name: str,
    *,
    executable: Path,
    model: Path,
    model_sha256: str,
    paths: Paths,
    ctx_size: int,
    profile: str,
    texts: Sequence[str],
    seconds: float,
    device: Device,
) -> VariantMeasurement:
    """Measure one variant with a built-in profile, so that all variants are treated alike.

    It runs its own engine in a temporary home. A daemon may run beside it. It blocks, and must be called on the main thread
    without an event loop.

    Args:
        name: The name of the variant.
        executable: The `llama-server`.
        model: The GGUF.
        model_sha256: Its SHA-256, in hexadecimal.
        paths: The home that the known quirks of the engine are taken from.
        ctx_size: The context in tokens, as for `LlamaBackend`.
        profile: The name of the profile.
        texts: Some texts of at least 26 tokens.
        seconds: The time of the measurement. The engine's start, and the vectors to compare, come on top.
        device: The device that computes.

    Raises:
        BackendError: The engine does not run, or its vectors are wrong.
        ModelFileError: The GGUF cannot be used.
    """
    measured, size = built_in_profile(profile, pooling=read_gguf(model).pooling, device=device), model.stat().st_size

    async def run(backend: LlamaBackend) -> VariantMeasurement:
        try:
            await backend.start()
            speed = await measure_running(backend, measured, texts, seconds)
            vectors = [(await backend.embed([text])).vectors[0] for text in texts[:_COMPARED_TEXTS]]
            memory = resident_bytes(backend.state.pid) if backend.state.pid else 0
        finally:
            await backend.stop()
        return VariantMeasurement(
            name=name,
            file_bytes=size,
            memory_bytes=memory,
            lone_seconds=speed.lone_seconds,
            texts_per_second=speed.texts_per_second,
            tokens_per_second=speed.tokens_per_second,
            vectors=tuple(vectors),
        )

    with workshop(paths) as temporary:
        backend = LlamaBackend(
            executable=executable,
            model=model,
            model_sha256=model_sha256,
            paths=temporary,
            ctx_size=ctx_size,
            profile=measured,
            device=device,
        )
        return asyncio.run(run(backend))


def most_exact(measurements: Sequence[VariantMeasurement]) -> VariantMeasurement:
    """Return the measurement of the variant with the most bits a weight, which has the largest file."""
    return max(measurements, key=lambda each: each.file_bytes)


def closeness(one: VariantMeasurement, other: VariantMeasurement) -> Closeness:
    """Compare the vectors of two variants, text by text."""
    cosines = [cosine(a, b) for a, b in zip(one.vectors, other.vectors, strict=True)]
    if any(map(math.isnan, cosines)):
        return Closeness(math.nan, math.nan)
    return Closeness(statistics.mean(cosines), min(cosines))
