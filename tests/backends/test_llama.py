"""The backend with the real engine and real models: right vectors, exact limits, sockets and processes."""

from __future__ import annotations

import asyncio
import re
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runed.backends.base import BackendStatus, pack
from runed.backends.llama.http import _Tokens, decode
from runed.errors import BackendFaultError, BackendUnavailableError, TextTooLongError
from tests.backends.support import MakeBackend
from tests.support import Golden


def as_array(vectors: list[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


async def test_tiny_qwen3_agrees_with_transformers(make_backend: MakeBackend, tiny_golden: Golden) -> None:
    backend = make_backend(ctx_size=2048)
    assert [len(tokens) for tokens in await backend.tokenize(tiny_golden.texts)] == tiny_golden.tokens
    for text, tokens in zip(tiny_golden.texts, tiny_golden.tokens, strict=True):
        assert (await backend.embed([text])).tokens == tokens
    batch = await backend.embed(tiny_golden.texts)
    assert tiny_golden.cosines(as_array(batch.vectors)).min() >= 0.9999
    assert batch.tokens == sum(tiny_golden.tokens)


async def test_minilm_agrees_with_sentence_transformers(make_backend: MakeBackend, minilm: Path, minilm_golden: Golden) -> None:
    backend = make_backend(model=minilm, ctx_size=2048)
    batch = await backend.embed(minilm_golden.texts)
    assert minilm_golden.cosines(as_array(batch.vectors)).min() >= 0.9999
    assert [len(tokens) for tokens in await backend.tokenize(minilm_golden.texts)] == minilm_golden.tokens


async def test_model_is_known_before_the_engine_runs(make_backend: MakeBackend) -> None:
    backend = make_backend(ctx_size=1024)
    assert backend.model.identity == "sha256:" + "ab" * 8
    assert (backend.model.dim, backend.model.pooling, backend.model.max_tokens) == (64, "last", 1023)
    assert backend.state.status is BackendStatus.STOPPED
    assert backend.state.pid == 0


@pytest.mark.parametrize("ctx_size", [64, 256, 300, 100_000])
async def test_last_pooling_takes_max_tokens_and_not_one_more(make_backend: MakeBackend, ctx_size: int) -> None:
    backend = make_backend(ctx_size=ctx_size)
    limit = backend.model.max_tokens
    assert limit == {64: 255, 256: 255, 300: 511, 100_000: 2047}[ctx_size]
    longest = "z" * (limit - 1)  # each is a token, and the EOS is one
    assert [len(tokens) for tokens in await backend.tokenize([longest])] == [limit]
    assert (await backend.embed([longest])).tokens == limit
    with pytest.raises(TextTooLongError) as caught:
        await backend.embed(["short", longest + "z"])
    assert caught.value.metadata == {"tokens": str(limit + 1), "limit": str(limit)}
    assert "zz" not in caught.value.message


async def test_context_that_is_no_multiple_of_256_is_clamped_exactly(
    make_backend: MakeBackend, copy_of_tiny_qwen3: Path
) -> None:
    key = b"qwen3.context_length"
    replace_bytes(copy_of_tiny_qwen3, key + struct.pack("<II", 4, 2048), key + struct.pack("<II", 4, 300))
    backend = make_backend(model=copy_of_tiny_qwen3, ctx_size=2048)
    assert backend.model.max_tokens == 299
    assert (await backend.embed(["z" * 298])).tokens == 299
    with pytest.raises(TextTooLongError):
        await backend.embed(["z" * 299])


@pytest.mark.parametrize("context", [24, 64, 72])
async def test_model_with_a_small_context_passes_its_self_test(
    make_backend: MakeBackend, copy_of_tiny_qwen3: Path, context: int
) -> None:
    key = b"qwen3.context_length"
    replace_bytes(copy_of_tiny_qwen3, key + struct.pack("<II", 4, 2048), key + struct.pack("<II", 4, context))
    backend = make_backend(model=copy_of_tiny_qwen3)
    assert (await backend.embed(["z" * (context - 2)])).tokens == backend.model.max_tokens == context - 1


@pytest.mark.parametrize("ctx_size", [256, 2048])
async def test_mean_pooling_takes_max_tokens_and_not_one_more(make_backend: MakeBackend, minilm: Path, ctx_size: int) -> None:
    backend = make_backend(model=minilm, ctx_size=ctx_size)
    limit = backend.model.max_tokens
    assert limit == min(ctx_size, 512)
    longest = "the " * (limit - 2)  # with CLS and SEP
    assert (await backend.embed([longest])).tokens == limit
    with pytest.raises(TextTooLongError) as caught:
        await backend.embed([longest + "the"])
    assert caught.value.metadata == {"tokens": str(limit + 1), "limit": str(limit)}


@pytest.mark.parametrize("model", ["tiny_qwen3", "minilm"])
async def test_tokens_embed_as_their_text_does(make_backend: MakeBackend, model: str, request: pytest.FixtureRequest) -> None:
    backend = make_backend(model=request.getfixturevalue(model))
    texts = ["a text", "<|endoftext|> inside", "naïve 北京 🙂"]
    by_text = await backend.embed(texts)
    by_tokens = await backend.embed(await backend.tokenize(texts))
    assert by_tokens.tokens == by_text.tokens
    assert (np.sum(as_array(by_tokens.vectors) * as_array(by_text.vectors), axis=1) >= 0.999999).all()


async def test_many_texts_are_tokenized_by_several_questions(make_backend: MakeBackend) -> None:
    backend = make_backend()
    texts = ["z" * (index * 37 % 4000) for index in range(300)]
    assert [len(tokens) for tokens in await backend.tokenize(texts)] == [len(text) + 1 for text in texts]
    assert await backend.tokenize([]) == []


@pytest.mark.parametrize("text", ["a", "ab", "abc", "abcdef", "abcdefg", "a b c d"])
async def test_a_very_short_text_is_counted_without_what_fills_its_batch(make_backend: MakeBackend, text: str) -> None:
    batch = await make_backend().embed([text])
    assert (len(batch.vectors), batch.tokens) == (1, len(text) + 1)


async def test_a_long_text_finds_room_although_all_slots_were_used(make_backend: MakeBackend) -> None:
    backend = make_backend()
    limits = backend.limits
    for start in range(3):
        await backend.embed([f"{start} text {index}"[: limits.tokens // limits.texts - 1] for index in range(limits.texts)])
        assert (await backend.embed(["z" * (backend.model.max_tokens - 1)])).tokens == backend.model.max_tokens
    assert backend.state.restarts == 0


async def test_engine_closes_each_connection_after_100_requests_unnoticed(make_backend: MakeBackend) -> None:
    backend = make_backend()
    first = await backend.embed(["hello"])
    for _ in range(230):
        assert await backend.embed(["hello"]) == first
    batches = await asyncio.gather(*(backend.embed([f"text {number}"]) for number in range(64)))
    assert len({batch.vectors[0] for batch in batches}) == 64
    assert backend.state.restarts == 0


async def test_every_flag_is_known_to_the_engine_and_memory_is_bounded(make_backend: MakeBackend, llama_server: Path) -> None:
    backend = make_backend(ctx_size=2048)
    argv = backend._launcher.command.argv()
    text = await asyncio.to_thread(lambda: subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True))
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.stdout))
    assert {argument for argument in [*argv, "--no-repack", "--flash-attn"] if argument.startswith("-")} <= known
    options = dict(pairwise(argv))
    assert (options["--cache-ram"], options["--parallel"], options["--ctx-size"]) == ("0", "8", "2048")
    assert "--kv-unified" in argv
    assert options["--ubatch-size"] == options["--batch-size"] == "192"


async def test_model_that_the_engine_cannot_load_is_told_with_its_words(
    make_backend: MakeBackend, copy_of_tiny_qwen3: Path
) -> None:
    replace_bytes(copy_of_tiny_qwen3, b"blk.1.attn_q.weight", b"blk.1.attn_X.weight")
    backend = make_backend(model=copy_of_tiny_qwen3)
    with pytest.raises(BackendUnavailableError, match=r"exited with code 1 while it started; its last words: .*failed to load"):
        await backend.start()
    assert backend.state.status is BackendStatus.FAILED


async def test_vectors_do_not_depend_on_company(make_backend: MakeBackend, minilm: Path) -> None:
    for model in (None, minilm):
        backend = make_backend(**({"model": model} if model else {}))
        limits = backend.limits
        assert limits.texts > 1
        texts = ["z" * length for length in (1, 2, 4, 6, 7, 11, 13)] + ["two words"]
        long = "the quick brown fox jumps " * 9
        alone = [(await backend.embed([text])).vectors[0] for text in [*texts, long]]
        for order in (texts, texts[::-1], texts[3:] + texts[:3]):
            together = dict(zip(order, (await backend.embed(order)).vectors, strict=True))
            together[long] = (await backend.embed([long])).vectors[0]
            pairs = zip(as_array(alone), as_array([together[text] for text in [*texts, long]]), strict=True)
            assert min(float(one @ other) for one, other in pairs) >= 0.9999
        await backend.stop()


@pytest.mark.parametrize("token", [2**31, -2, 1.5, '"a"'])
def test_what_is_no_id_of_a_token_is_a_fault_of_the_engine(token: object) -> None:
    with pytest.raises(BackendFaultError, match="not of the expected form"):
        decode(f'{{"tokens": [1, {token}]}}'.encode(), _Tokens)
    largest = decode(f'{{"tokens": [-1, {2**31 - 1}]}}'.encode(), _Tokens).tokens
    assert pack(largest).tolist() == [-1, 2**31 - 1]
