"""Passes: long texts are exact in each profile, and do not depend on earlier texts. Memory bounds the size of a pass."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from runed.backends.base import BackendStatus, Tokens, pack
from runed.backends.cores import usable_cores
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.command import LlamaCommand
from runed.backends.llama.passes import SHORT_PASS, TILE, TILED_PASSES, affordable_pass, fitting_pass, missing_tile, pass_cost
from runed.backends.llama.profile import Profile, built_in_profile
from runed.domain.model import ModelInfo
from runed.paths import Paths
from runed.settings import PROFILES
from tools.qwen3 import Shape, write

SMALL = Shape(dim=64, layers=6, heads=2, kv_heads=1, head_dim=32, feed_forward=128)
QUANTIZABLE = Shape(dim=256, layers=8, heads=2, kv_heads=1, head_dim=128, feed_forward=256)
ONE_PASS = Profile("one pass", 1, TILE - 1, usable_cores(), 2048)
"""A profile that computes each text of the tests in one pass."""

LONG_TEXTS = (500, 1361, 2000, 1290, 1034)
"""Tokens of long texts. With passes of 128, 256 and 512 tokens, 1,034 leave a piece of 10. With 192, 1,361 leave one of 17."""

GIB = 1024**3


def text_of(tokens: int, seed: int = 0) -> Tokens:
    """Return a text of random bytes, and its EOS."""
    source = random.Random(seed * 10_007 + tokens)
    return pack([*(source.randrange(256) for _ in range(tokens - 1)), 319])


def backend_of(profile: Profile | str, model: Path, llama_server: Path, home: Path) -> LlamaBackend:
    return LlamaBackend(
        executable=llama_server, model=model, model_sha256="ab" * 32, paths=Paths(home), ctx_size=2048, profile=profile
    )


async def embed_alone(backend: LlamaBackend, texts: Sequence[Tokens]) -> list[bytes]:
    try:
        return [(await backend.embed([text])).vectors[0] for text in texts]
    finally:
        await backend.stop()


def worst_cosine(some: Sequence[bytes], others: Sequence[bytes]) -> float:
    one, other = (np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1).astype(float) for vectors in (some, others))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float((np.einsum("ij,ij->i", one, other) / norms).min())


@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False], ids=["f32", "f16"])
async def test_long_texts_are_as_exact_in_every_profile_as_in_one_pass(home: Path, llama_server: Path, *, single: bool) -> None:
    model = home / "model.gguf"
    write(model, SMALL, single=single)
    texts = [text_of(tokens) for tokens in LONG_TEXTS]
    exact = await embed_alone(backend_of(ONE_PASS, model, llama_server, home), texts)
    for name in PROFILES:
        assert worst_cosine(await embed_alone(backend_of(name, model, llama_server, home), texts), exact) >= 0.99999, name


def write_quantized(model: Path, llama_server: Path) -> None:
    whole = model.with_suffix(".f16")
    write(whole, QUANTIZABLE)
    quantize = [str(llama_server.with_name("llama-quantize")), str(whole), str(model), "Q6_K", "2"]
    subprocess.run(quantize, check=True, capture_output=True)


@pytest.mark.slow
async def test_quantized_vectors_do_not_depend_on_company(home: Path, llama_server: Path) -> None:
    model = home / "model.gguf"
    await asyncio.to_thread(write_quantized, model, llama_server)
    backend = backend_of("balanced", model, llama_server, home)
    limits, step = backend.limits, built_in_profile("balanced", pooling="last").pass_tokens
    short = [text_of(tokens) for tokens in (2, 5, 7, 8, 12, 15)]
    long = [text_of(tokens) for tokens in (TILE - 1, TILE, step, step + 1, step + TILE - 1, step + TILE)]
    try:
        alone = [(await backend.embed([text])).vectors[0] for text in [*short, *long]]
        for seed in range(3):  # each time, other slots are the ones that were used last
            order = random.Random(seed).sample(short, len(short))
            together = dict(zip(map(tuple, order), (await backend.embed(order)).vectors, strict=True))
            for text in long:
                await backend.embed([text_of(9, seed)] * (seed + 1))
                together[tuple(text)] = (await backend.embed([text])).vectors[0]
            assert worst_cosine(alone, [together[tuple(text)] for text in [*short, *long]]) >= 0.9999999
    finally:
        await backend.stop()
    assert sum(map(len, short)) <= limits.tokens
    assert backend.state.status is BackendStatus.STOPPED


@pytest.mark.parametrize("context", range(256, 4097, 256))
@pytest.mark.parametrize("wanted", [SHORT_PASS, *TILED_PASSES])
def test_every_text_finds_room_for_the_tile_that_it_needs(context: int, wanted: int) -> None:
    tokens = fitting_pass(wanted, context)
    assert SHORT_PASS <= tokens <= context
    assert tokens % 4 == 0
    if tokens > SHORT_PASS:
        for text in range(TILE, context):
            missing = missing_tile(text, tokens)
            assert not missing or text + TILE <= context
            assert (text + missing * TILE) % tokens == 0 or (text + missing * TILE) % tokens >= TILE


def test_free_memory_bounds_a_pass() -> None:
    vocabulary = 151_936
    assert pass_cost(vocabulary) == pytest.approx(1.16 * 1024**2, rel=0.01)
    sizes = [affordable_pass(512, vocabulary=vocabulary, free=int(free * GIB)) for free in (4, 2, 1.0, 0.7, 0.3, 0)]
    assert sizes == [512, 256, 192, 128, SHORT_PASS, SHORT_PASS]
    assert affordable_pass(128, vocabulary=vocabulary, free=64 * GIB) == 128
    assert affordable_pass(512, vocabulary=0, free=0) == SHORT_PASS


def command(profile: str, pooling: str = "last") -> LlamaCommand:
    info = ModelInfo("sha256:12", "name", "qwen3", 64, 2047, pooling, "F16", "ab" * 32)
    return LlamaCommand(
        executable=Path("llama-server"),
        model=Path("model.gguf"),
        socket=Path("socket"),
        log=Path("log"),
        info=info,
        context=2048,
        profile=built_in_profile(profile, pooling=pooling),
        vocabulary=151_936,
    )


def options(some: LlamaCommand) -> tuple[str, str, bool]:
    argv = some.argv()
    attention = dict(pairwise(argv)).get("--flash-attn", "on")
    return argv[argv.index("--ubatch-size") + 1], attention, "--kv-unified" in argv


def test_a_profile_decides_on_passes_and_attention() -> None:
    assert [options(command(name)) for name in ("memory", "throughput")] == [("60", "off", False), ("512", "on", True)]
    assert options(command("balanced"))[1:] == ("on", True)
    # An engine whose vectors depend on company has one slot, and no room for a tile beside a short piece.
    assert options(replace(command("throughput"), one_slot=True)) == ("512", "off", False)
    assert options(command("memory", pooling="mean")) == ("2047", "on", False)


def test_little_memory_makes_smaller_passes_and_says_so() -> None:
    plenty, little, least = (command("throughput").within(int(free * GIB)) for free in (64, 1.0, 0.1))
    assert (options(plenty)[0], plenty.remark) == ("512", "")
    assert (options(little), little.slots) == (("192", "on", True), 8)
    assert "computes 192 tokens at once instead of 512" in little.remark
    assert (options(least), least.slots, least.limits.tokens) == (("60", "off", False), 1, SHORT_PASS)
    assert command("balanced", pooling="mean").within(0) == command("balanced", pooling="mean")


async def test_a_build_whose_long_texts_are_independent_is_remembered(home: Path, llama_server: Path, tiny_qwen3: Path) -> None:
    identities = set()
    for profile in ("throughput", "throughput", "memory"):
        backend = backend_of(profile, tiny_qwen3, llama_server, home)
        await backend.start()
        await backend.stop()
        identities.add(backend.model.identity)
    (identity,) = identities
    (key,) = json.loads(Paths(home).engine_quirks.read_text())["sound_passes"]
    assert key.endswith(f" {identity} 512")  # with one slot, there is nothing to check
