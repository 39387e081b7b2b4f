"""Texts of which a model reads nothing are refused, for each kind of tokenizer, and special tokens are read as such."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from runed.caching.cache import VectorCache
from runed.caching.entry import CachedVector, cache_key
from runed.domain.requests import Embedding, EmbedOptions, Lane, Role, StreamItem, Truncate
from runed.errors import BackendUnavailableError, EmptyTextError
from runed.scheduling.scheduler import Scheduler
from tests.scheduling import toy_models
from tests.scheduling.conftest import MakeEngine
from tests.scheduling.test_claims import Stoppable, scheduler_of
from tests.scheduling.virtual import Step, virtual_time

PLAIN = EmbedOptions()
ME = "unix:1"

INVISIBLE = {
    "zero width space": "\u200b",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "word joiner": "\u2060",
    "control": "\x01\x1b\x7f\x85",
    "unassigned": "\u0378",
    "unassigned plane": "\U000e0fff",
    "noncharacter": "\uffff",
    "private use": "\ue000\U000f0000",
    "replacement": "\ufffd",
    "variation selector": "\ufe0f",
    "accent": "\u0301",
    "fillers": "\u3164\u115f\uffa0",
    "braille blank": "\u2800",
    "tag": "\U000e0041",
    "with white space": " \u200b\n\u00a0\t",
    "long": "\u200b" * 5000,
}

VISIBLE = ["a", "7", "!", "...", "_", "北京", "é", "ก", "🙂", "🚀\u200d", "€", "\u200bx\u200b"]
"""Texts that no model may refuse. MiniLM reads the emoji as unknown."""


@pytest.fixture
def toys(tmp_path: Path) -> dict[str, Path]:
    """The models of SentencePiece's two kinds."""
    paths = {kind: tmp_path / f"{kind}.gguf" for kind in ("t5", "llama")}
    for kind, path in paths.items():
        toy_models.write(path, kind)
    return paths


@pytest.fixture
def model(request: pytest.FixtureRequest, toys: dict[str, Path]) -> Path:
    path: Path = toys[request.param] if request.param in toys else request.getfixturevalue(request.param)
    return path


async def refused(engine: Scheduler, texts: Sequence[str]) -> list[str]:
    """Return the texts that have an EMPTY_TEXT. No other error may occur."""
    answer = await engine.embed(texts, PLAIN, client=ME, per_item_errors=True)
    assert {type(item) for item in answer.items} <= {Embedding, EmptyTextError}
    return [text for text, item in zip(texts, answer.items, strict=True) if isinstance(item, EmptyTextError)]


@pytest.mark.engine
@pytest.mark.parametrize("model", ["minilm", "t5"], indirect=True)
async def test_invisible_texts_are_empty_where_the_tokenizer_drops_them(make_engine: MakeEngine, model: Path) -> None:
    engine, backend = make_engine(model)
    assert await refused(engine, [*INVISIBLE.values(), *VISIBLE]) == [*INVISIBLE.values()]
    assert {*backend.computed} == {*VISIBLE}


@pytest.mark.engine
@pytest.mark.parametrize("model", ["tiny_qwen3", "llama"], indirect=True)
async def test_invisible_texts_are_texts_where_the_tokenizer_reads_their_bytes(make_engine: MakeEngine, model: Path) -> None:
    engine, _ = make_engine(model)
    texts = [text for text in INVISIBLE.values() if len(text) < 50]
    answer = await engine.embed([*texts, *VISIBLE], PLAIN, client=ME)
    vectors = np.array([np.frombuffer(item.vector, "<f4") for item in answer.items if isinstance(item, Embedding)])
    assert len(np.unique(vectors, axis=0)) == len(texts) + len(VISIBLE)


SPECIAL = {
    "minilm": ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]", "[unused7]", "[CLS] [SEP]", "[SEP]\u200b[UNK]", "[SEP]" * 50],
    "tiny_qwen3": ["<|endoftext|>", "<|endoftext|>" * 50, " <|endoftext|>\n<|endoftext|>"],
    "t5": ["<s>", "</s>", "<unk>", "<s> </s>", "<s>\u200b"],
    "llama": ["<s>", "</s>", "<unk>", "<s>\n</s>"],
}

NOT_SPECIAL = {
    "minilm": ["[sep]", "[SEP", "<|endoftext|>", "[SEP] a", "a[SEP]", "[SEP]🙂", "[unused 7]"],
    "tiny_qwen3": ["[SEP]", "<|endoftext", "<|endoftext|>a", "<|endoftext|>\u200b", "<|EndOfText|>"],
    "t5": ["[SEP]", "<s>a", "< s >"],
    "llama": ["[SEP]", "<s>a", "< s >", "<s>\u200b"],
}


@pytest.mark.engine
@pytest.mark.parametrize("model", SPECIAL, indirect=True)
async def test_text_of_special_tokens_alone_is_empty(
    make_engine: MakeEngine, model: Path, request: pytest.FixtureRequest
) -> None:
    engine, backend = make_engine(model)
    kind = request.node.callspec.params["model"]
    assert await refused(engine, [*SPECIAL[kind], *NOT_SPECIAL[kind]]) == SPECIAL[kind]
    assert {*backend.computed} == {*NOT_SPECIAL[kind]}


@pytest.mark.parametrize(("model", "special"), [("minilm", "[SEP]"), ("tiny_qwen3", "<|endoftext|>")], indirect=["model"])
@pytest.mark.engine
async def test_special_token_in_a_text_is_one_token(make_engine: MakeEngine, model: Path, special: str) -> None:
    """This is what the model's own tokenizer does in `transformers`."""
    engine, backend = make_engine(model)
    number = {text: number for number, text in backend.model.special_tokens}[special]
    [without], [with_it] = await backend.tokenize(["a b"]), await backend.tokenize([f"a{special} b"])
    assert len(with_it) == len(without) + 1
    assert with_it.count(number) == without.count(number) + 1
    assert isinstance((await engine.embed([f"a{special} b"], PLAIN, client=ME)).items[0], Embedding)


@pytest.mark.parametrize("text", ["\u200b", "[SEP]"])
async def test_empty_text_is_refused_on_every_way_in(make_engine: MakeEngine, minilm: Path, text: str) -> None:
    engine, backend = make_engine(minilm)
    every: list[EmbedOptions] = [PLAIN, *(EmbedOptions(truncate=truncate) for truncate in Truncate)]
    every += [EmbedOptions(role=Role.QUERY), *(EmbedOptions(lane=lane) for lane in Lane)]
    for options in every:
        with pytest.raises(EmptyTextError) as alone:
            await engine.embed([text], options, client=ME)
        assert alone.value.message.startswith("the text has only special tokens and characters of which")
        with pytest.raises(EmptyTextError) as among:
            await engine.embed(["good", text], options, client=ME)
        assert among.value.metadata == {"index": "1"}
    assert backend.computed == []

    async def chunks() -> AsyncIterator[list[StreamItem]]:
        yield [StreamItem("1", "good"), StreamItem("2", text)]

    told = {
        result.id: result.outcome
        async for answer in engine.embed_stream(chunks(), PLAIN, client=ME)
        for result in answer.results
    }
    assert isinstance(told["1"], Embedding)
    assert isinstance(told["2"], EmptyTextError)
    assert engine.load.cache_entries == 1


async def test_vector_of_an_earlier_version_is_not_found(make_engine: MakeEngine, minilm: Path) -> None:
    cache = VectorCache(1_000_000)
    engine, backend = make_engine(minilm, cache=cache)
    fingerprint = engine.fingerprint(backend.model.dim)
    for text in ("\u200b", "!"):
        cache.put(cache_key(fingerprint, "", "", text), CachedVector(bytes(4 * backend.model.dim), 2, 2))
    assert await refused(engine, ["\u200b", "!"]) == ["\u200b"]
    again = await engine.embed(["!"], PLAIN, client=ME)
    assert isinstance(again.items[0], Embedding)
    assert again.items[0].cached
    assert backend.computed == ["!"]


async def test_only_doubtful_texts_cost_the_engine_a_question(make_engine: MakeEngine, minilm: Path) -> None:
    engine, backend = make_engine(minilm)
    for text in ("plain", "  (in brackets)", "[1] a note", "naïve", "北京", "<|endoftext|>"):
        await engine.embed([text], PLAIN, client=ME)
    assert backend.tokenized == []
    for text in ("!", "🙂", "[SEP] a"):
        await engine.embed([text], PLAIN, client=ME)
    assert backend.tokenized == ["", " ", "!", "🙂", "[SEP] a"]
    await engine.embed(["\u200b" * 5000 + "far away"], PLAIN, client=ME)
    assert {len(text) for text in backend.tokenized[5:]} == {5008}
    del backend.tokenized[5:]
    for text in ("!", "🙂", "[SEP] a"):  # from the cache
        await engine.embed([text], PLAIN, client=ME)
    assert len(backend.tokenized) == 5


@virtual_time
async def test_engine_that_cannot_judge_a_text_fails_the_call() -> None:
    scheduler = scheduler_of(Stoppable(counts=[Step("unavailable")]))
    with pytest.raises(BackendUnavailableError):
        await scheduler.embed(["!", "plain"], PLAIN, client=ME, per_item_errors=True)
    assert (await scheduler.embed(["!", "plain"], PLAIN, client=ME)).items
