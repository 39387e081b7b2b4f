"""The scheduler asks the engine for no text twice, and for no text without a waiting caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runed.backends.base import Tokens
from runed.caching.cache import VectorCache
from runed.domain.model import ModelTraits
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Role, StreamItem, StreamResult, Truncate
from runed.errors import (
    BackendFaultError,
    BadDimensionsError,
    BadInstructionError,
    BatchTooLargeError,
    EmptyBatchError,
    EmptyTextError,
    InvalidTextError,
    QueueFullError,
    RunedError,
    TextTooLongError,
)
from runed.scheduling.queue import QueueLimits
from tests.scheduling.conftest import MakeEngine

PLAIN = EmbedOptions()
ME = "unix:1"


def array(item: Embedding | RunedError) -> NDArray[np.float32]:
    assert isinstance(item, Embedding), item
    return np.frombuffer(item.vector, "<f4")


def embedding(answer: EmbedAnswer) -> Embedding:
    [item] = answer.items
    assert isinstance(item, Embedding), item
    return item


def cosine(one: Embedding | RunedError, other: Embedding | RunedError) -> float:
    return float(array(one) @ array(other))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 # the engine has no events for what only a test wants to know
            await asyncio.sleep(0)


# No work twice


async def test_same_text_in_flight_is_computed_once_for_all_callers(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    answers = await asyncio.gather(*(engine.embed(["twin"], PLAIN, client=f"unix:{n}") for n in range(20)))
    assert backend.computed == ["twin"]
    assert len({embedding(answer).vector for answer in answers}) == 1
    assert sorted(embedding(answer).cached for answer in answers) == [False] + [True] * 19
    assert engine.load.stats.shared_texts == 19
    assert engine.load.stats.total_texts == 20


async def test_same_text_within_one_batch_is_computed_once(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    answer = await engine.embed(["a text", "another", "a text"], PLAIN, client=ME)
    assert sorted(map(str, backend.computed)) == ["a text", "another"]
    assert array(answer.items[0]).tolist() == array(answer.items[2]).tolist()


async def test_a_text_that_was_computed_comes_from_the_cache(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    first = embedding(await engine.embed(["again"], PLAIN, client=ME))
    second = embedding(await engine.embed(["again"], PLAIN, client="unix:2"))
    assert backend.computed == ["again"]
    assert (first.cached, second.cached) == (False, True)
    assert (first.vector, first.tokens, first.total_tokens) == (second.vector, second.tokens, second.total_tokens)
    assert engine.load.stats.cache_hits == 1
    assert engine.load.cache_entries == 1


async def test_a_twin_that_became_ready_meanwhile_is_not_computed_again(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    text = "t" * 200  # long enough to be counted first
    asked, gate, tokenize = asyncio.Event(), asyncio.Event(), backend.tokenize

    async def late(texts: Sequence[str]) -> list[Tokens]:
        asked.set()
        await gate.wait()
        return await tokenize(texts)

    backend.tokenize = late  # type: ignore[method-assign] # a backend that takes its time
    later = asyncio.create_task(engine.embed([text], PLAIN, client=ME))
    await asked.wait()
    backend.tokenize = tokenize  # type: ignore[method-assign] # as it was
    await engine.embed([text], PLAIN, client="unix:2")
    gate.set()
    assert embedding(await later).cached
    assert backend.computed == [text]
    assert (engine.load.stats.cache_hits, engine.load.stats.shared_texts) == (1, 0)


async def test_a_text_cut_for_a_smaller_context_is_not_taken_for_one_of_a_larger(make_engine: MakeEngine) -> None:
    options = EmbedOptions(truncate=Truncate.END)
    cache = VectorCache(1_000_000)
    for ctx_size in (256, 512):
        engine, backend = make_engine(ctx_size=ctx_size, cache=cache)
        item = embedding(await engine.embed(["x" * 600], options, client=ME))
        assert item.tokens == backend.model.max_tokens
        await backend.stop()


async def test_without_a_cache_every_call_is_computed(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(cache_bytes=0)
    for _ in range(2):
        await engine.embed(["again"], PLAIN, client=ME)
    assert backend.computed == ["again", "again"]


async def test_roles_instructions_and_dimensions_never_share_a_wrong_vector(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    options = [
        PLAIN,
        EmbedOptions(role=Role.QUERY),
        EmbedOptions(role=Role.QUERY, instruction="Find songs"),
        EmbedOptions(dimensions=32),
    ]
    first = [embedding(await engine.embed(["text"], option, client=ME)) for option in options]
    answers = [await engine.embed(["text"], option, client=ME) for option in options]
    assert all(embedding(answer).cached for answer in answers)
    assert [embedding(answer).vector for answer in answers] == [item.vector for item in first]
    assert len({item.vector for item in first}) == 4
    whole, short = array(answers[0].items[0]), array(answers[3].items[0])
    assert np.allclose(short, whole[:32] / np.linalg.norm(whole[:32]), atol=1e-6)


async def test_one_twin_that_goes_away_does_not_take_the_others_vector_along(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    await engine.start()
    blocker = asyncio.create_task(engine.embed(["z" * 200], PLAIN, client=ME))
    twins = [asyncio.create_task(engine.embed(["twin"], PLAIN, client=ME)) for _ in range(3)]
    await until(lambda: engine.load.queued[Lane.INTERACTIVE][0] > 0)
    twins[0].cancel()
    answers = await asyncio.gather(*twins, return_exceptions=True)
    await blocker
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[1], EmbedAnswer)
    assert isinstance(answers[2], EmbedAnswer)
    assert backend.computed.count("twin") == 1


# Cancellation


async def test_rest_of_a_cancelled_batch_is_never_computed(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    job = asyncio.create_task(engine.embed([f"text {number}" for number in range(1000)], PLAIN, client=ME))
    await until(lambda: len(backend.batches) >= 3)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    sent = len(backend.batches)
    assert engine.load.queued[Lane.BULK] == (0, 0)
    await engine.embed(["after"], PLAIN, client="unix:2")
    assert len(backend.batches) == sent + 1
    assert backend.batches[-1] == ["after"]


async def test_a_deadline_drops_what_waits(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    await engine.start()
    blocker = asyncio.create_task(engine.embed(["z" * 200] + [f"t {n}" for n in range(40)], PLAIN, client=ME))
    await until(lambda: bool(backend.batches))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await engine.embed(["too late"], PLAIN, client="unix:2")
    await blocker
    assert "too late" not in backend.computed


# Lanes


async def test_a_single_text_goes_before_a_batch_that_came_first(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    await engine.start()
    bulk = asyncio.create_task(engine.embed([f"bulk {number}" for number in range(200)], PLAIN, client=ME))
    await until(lambda: bool(backend.batches))
    await engine.embed(["urgent"], PLAIN, client="unix:2")
    position = backend.batches.index(["urgent"])
    assert position <= 2
    await bulk
    assert len(backend.computed) == 201


async def test_a_caller_chooses_the_lane(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    await engine.embed(["one"], EmbedOptions(lane=Lane.BULK), client=ME)
    assert engine.load.stats.bulk.total_texts == 1
    await engine.embed([f"text {n}" for n in range(20)], EmbedOptions(lane=Lane.INTERACTIVE), client=ME)
    assert engine.load.stats.interactive.total_texts == 20
    assert engine.load.stats.bulk.total_texts == 1


async def test_an_interactive_twin_takes_a_bulk_text_along(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    await engine.start()
    texts = [f"bulk text {number:03d}" for number in range(100)]
    bulk = asyncio.create_task(engine.embed(texts, PLAIN, client=ME))
    await until(lambda: bool(backend.batches))
    await engine.embed([texts[-1]], PLAIN, client="unix:2")
    assert len(backend.computed) < 60
    await bulk
    assert len(backend.computed) == 100


# Bounds


async def test_a_full_queue_refuses_at_once_and_computes_nothing_of_the_call(make_engine: MakeEngine) -> None:
    engine, backend = make_engine(queue=QueueLimits(64, 1_000_000))
    await engine.start()
    first = asyncio.create_task(engine.embed([f"first {n}" for n in range(50)], PLAIN, client=ME))
    await until(lambda: bool(backend.batches))
    with pytest.raises(QueueFullError) as caught:
        await engine.embed([f"second {n}" for n in range(50)], PLAIN, client="unix:2")
    assert caught.value.retry_after
    assert engine.load.stats.refused_requests == 1
    await first
    assert not [text for text in backend.computed if str(text).startswith("second")]
    assert (await engine.embed([f"second {n}" for n in range(50)], PLAIN, client="unix:2")).items


async def test_batches_that_nobody_can_serve_are_refused(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    with pytest.raises(EmptyBatchError):
        await engine.embed([], PLAIN, client=ME)
    with pytest.raises(BatchTooLargeError):
        await engine.embed(["x"] * 2049, PLAIN, client=ME)
    assert backend.batches == []


# Texts


@pytest.mark.parametrize(
    ("text", "error"), [("", EmptyTextError), (" \n", EmptyTextError), ("a\0b", InvalidTextError), ("\ud800", InvalidTextError)]
)
async def test_a_bad_text_fails_its_call_or_its_item(make_engine: MakeEngine, text: str, error: type[RunedError]) -> None:
    engine, backend = make_engine()
    with pytest.raises(error) as caught:
        await engine.embed(["good", text], PLAIN, client=ME)
    assert caught.value.metadata["index"] == "1"
    assert backend.batches == []
    answer = await engine.embed(["good", text, "fine"], PLAIN, client=ME, per_item_errors=True)
    assert [type(item) for item in answer.items] == [Embedding, error, Embedding]


@pytest.mark.parametrize("model", ["tiny_qwen3", "minilm"])
async def test_truncation_reads_as_much_as_the_model_does(
    make_engine: MakeEngine, model: str, request: pytest.FixtureRequest
) -> None:
    engine, backend = make_engine(request.getfixturevalue(model))
    limit = backend.model.max_tokens
    words = "alpha beta gamma delta " * limit
    with pytest.raises(TextTooLongError) as caught:
        await engine.embed([words], PLAIN, client=ME)
    total = int(caught.value.metadata["tokens"])
    assert total > limit
    [whole] = await backend.tokenize([words])
    for truncate in (Truncate.END, Truncate.START):
        item = embedding(await engine.embed([words], EmbedOptions(truncate=truncate), client=ME))
        assert (item.tokens, item.total_tokens, item.truncated) == (limit, total, True)
        sent = backend.computed[-1]
        assert len(sent) == limit
        [a] = await backend.tokenize(["a"])
        assert (sent[0] == whole[0]) or truncate is Truncate.START
        assert sent[-1] == whole[-1] == a[-1]
    fits = embedding(await engine.embed(["short"], EmbedOptions(truncate=Truncate.END), client=ME))
    assert not fits.truncated
    assert fits.tokens == fits.total_tokens


async def test_truncation_at_the_end_agrees_with_the_text_that_was_left(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    limit = backend.model.max_tokens
    text = "".join(chr(97 + number % 26) for number in range(400))  # a token a letter, and the EOS
    left = {Truncate.END: text[: limit - 1], Truncate.START: text[-(limit - 1) :]}
    for truncate, rest in left.items():
        cut = await engine.embed([text], EmbedOptions(truncate=truncate), client=ME)
        alone = await engine.embed([rest], PLAIN, client=ME)
        assert cosine(cut.items[0], alone.items[0]) >= 0.99999


async def test_truncation_leaves_the_prompt_alone(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    text = "x" * 300 + "y" * 300
    options = EmbedOptions(role=Role.QUERY, instruction="Find it", truncate=Truncate.START)
    answer = await engine.embed([text], options, client=ME)
    [prompt] = await backend.tokenize([answer.space.prompt])
    sent = list(backend.computed[-1])
    assert sent[: len(prompt) - 1] == prompt[:-1].tolist()
    assert sent[-2] == (await backend.tokenize(["y"]))[0][0]
    with pytest.raises(TextTooLongError, match="instruction"):
        await engine.embed(["text"], EmbedOptions(role=Role.QUERY, instruction="x" * 300, truncate=Truncate.END), client=ME)


async def test_a_text_cut_at_its_end_is_not_taken_for_one_cut_at_its_start(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    text = "x" * 300 + "y" * 300
    end, start = [
        embedding(await engine.embed([text], EmbedOptions(truncate=truncate), client=ME))
        for truncate in (Truncate.END, Truncate.START)
    ]
    assert end.vector != start.vector


async def test_texts_are_counted_in_portions_that_let_others_in_between(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    portions: list[tuple[int, int]] = []
    tokenize = backend.tokenize

    async def noted(texts: Sequence[str]) -> list[Tokens]:
        portions.append((len(texts), sum(map(len, texts))))
        return await tokenize(texts)

    backend.tokenize = noted  # type: ignore[method-assign] # notes what it is asked
    texts = [f"{number} " + "x" * 300 for number in range(70)] + ["y" * 600_000] * 3
    counts = await engine.count_tokens(texts, PLAIN)
    assert counts[70:] == [600_001] * 3
    assert counts[0] == len((await tokenize(texts[:1]))[0])
    assert [texts for texts, _ in portions] == [64, 7, 1, 1]
    portions.clear()
    answer = await engine.embed(texts, PLAIN, client=ME, per_item_errors=True)
    assert [item.metadata["tokens"] for item in answer.items if isinstance(item, RunedError)] == list(map(str, counts))
    assert max(size for _, size in portions) <= 2**20


# Roles, dimensions, fingerprint


async def test_the_prompt_of_a_query_is_the_models_own_and_is_told(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    default = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    for options, prompt in [
        (PLAIN, ""),
        (EmbedOptions(role=Role.DOCUMENT), ""),
        (EmbedOptions(role=Role.QUERY), default),
        (EmbedOptions(role=Role.QUERY, instruction="Find songs"), "Instruct: Find songs\nQuery:"),
    ]:
        answer = await engine.embed(["a unique text"], options, client=ME)
        assert answer.space.prompt == prompt
        written_out = await engine.embed([prompt + "a unique text"], PLAIN, client=ME)
        assert cosine(answer.items[0], written_out.items[0]) >= 0.99999
        assert await engine.count_tokens(["a unique text"], options) == [embedding(answer).tokens]
    assert len(backend.model.identity) == len("sha256:") + 16


async def test_instructions_that_cannot_be_followed_are_refused(make_engine: MakeEngine, minilm: Path) -> None:
    engine, _ = make_engine()
    for options in (
        EmbedOptions(instruction="Find songs"),
        EmbedOptions(role=Role.DOCUMENT, instruction="Find songs"),
        EmbedOptions(role=Role.QUERY, instruction=" "),
    ):
        with pytest.raises(BadInstructionError):
            await engine.embed(["text"], options, client=ME)
    other, _ = make_engine(minilm)
    with pytest.raises(BadInstructionError, match="takes no instruction"):
        await other.embed(["text"], EmbedOptions(role=Role.QUERY, instruction="Find songs"), client=ME)
    assert (await other.embed(["text"], EmbedOptions(role=Role.QUERY), client=ME)).space.prompt == ""


async def test_traits_of_the_manifest_take_the_place_of_the_known_ones(make_engine: MakeEngine, minilm: Path) -> None:
    traits = ModelTraits(query_prompt="query: ", document_prompt="passage: ", min_dimensions=64)
    engine, _ = make_engine(minilm, traits=traits)
    for role, prompt in ((Role.QUERY, "query: "), (Role.DOCUMENT, "passage: ")):
        answer = await engine.embed(["text"], EmbedOptions(role=role, dimensions=64), client=ME)
        written_out = await engine.embed([prompt + "text"], EmbedOptions(dimensions=64), client=ME)
        assert answer.space.prompt == prompt
        assert array(answer.items[0]).shape == (64,)
        assert cosine(answer.items[0], written_out.items[0]) >= 0.99999
    plain, _ = make_engine(minilm)
    assert plain.fingerprint(384) != engine.fingerprint(384)


@pytest.mark.parametrize("dimensions", [32, 33, 63, 64])
async def test_fewer_dimensions_are_unit_vectors_of_their_own_space(make_engine: MakeEngine, dimensions: int) -> None:
    engine, _ = make_engine()
    answer = await engine.embed(["text"], EmbedOptions(dimensions=dimensions), client=ME)
    vector = array(answer.items[0])
    assert vector.shape == (dimensions,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-6
    native = await engine.embed(["text"], PLAIN, client=ME)
    assert (answer.space.fingerprint == native.space.fingerprint) == (dimensions == 64)


@pytest.mark.parametrize(("model", "dimensions"), [("tiny_qwen3", 31), ("tiny_qwen3", 65), ("minilm", 383), ("minilm", 1)])
async def test_other_dimensions_are_refused(
    make_engine: MakeEngine, model: str, dimensions: int, request: pytest.FixtureRequest
) -> None:
    engine, backend = make_engine(request.getfixturevalue(model))
    with pytest.raises(BadDimensionsError) as caught:
        await engine.embed(["text"], EmbedOptions(dimensions=dimensions), client=ME)
    assert caught.value.metadata["max"] == str(backend.model.dim)
    assert backend.batches == []


# Streams


async def chunks(*parts: Sequence[str]) -> AsyncIterator[Sequence[StreamItem]]:
    for part in parts:
        yield [StreamItem(text, text) for text in part]


async def collect(engine: object, *parts: Sequence[str]) -> list[StreamResult]:
    answers = engine.embed_stream(chunks(*parts), PLAIN, client=ME)  # type: ignore[attr-defined] # an Scheduler
    return [result async for answer in answers for result in answer.results]


async def test_a_stream_answers_every_text_once(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    texts = [f"text {number}" for number in range(1500)]
    results = await collect(engine, texts[:3], [], texts[3:])
    assert sorted(result.id for result in results) == sorted(texts)
    assert sorted(map(str, backend.computed)) == sorted(texts)
    batch = await engine.embed(texts[:5], PLAIN, client=ME)
    by_id = {result.id: result.outcome for result in results}
    assert all(cosine(by_id[text], item) >= 0.9999 for text, item in zip(texts[:5], batch.items, strict=True))


async def test_a_bad_text_does_not_end_a_stream(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    results = {result.id: result.outcome for result in await collect(engine, ["good", "", "x" * 300, "fine", "good"])}
    assert {text: type(outcome) for text, outcome in results.items()} == {
        "good": Embedding,
        "": EmptyTextError,
        "x" * 300: TextTooLongError,
        "fine": Embedding,
    }


async def test_a_stream_takes_no_more_than_its_window_while_nobody_reads(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    taken = 0

    async def endless() -> AsyncIterator[Sequence[StreamItem]]:
        nonlocal taken
        while True:
            taken += 1
            yield [StreamItem(str(taken), f"text {taken}")]

    answers = engine.embed_stream(endless(), PLAIN, client=ME)
    first = await anext(answers)
    assert first.results
    for _ in range(200):
        await asyncio.sleep(0.005)
    assert taken <= 513 + len(first.results)
    await answers.aclose()
    assert engine.load.queued[Lane.BULK] == (0, 0)
    count = taken
    await asyncio.sleep(0.02)
    assert taken == count


async def test_a_stream_waits_for_room_instead_of_being_refused(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(queue=QueueLimits(64, 1_000_000))
    texts = [[f"{part} text {number}" for number in range(300)] for part in range(3)]
    results = await asyncio.gather(*(collect(engine, part) for part in texts))
    assert [len(part) for part in results] == [300, 300, 300]
    assert engine.load.stats.refused_requests == 0


async def test_a_broken_source_ends_the_stream_with_its_error(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()

    async def broken() -> AsyncIterator[Sequence[StreamItem]]:
        yield [StreamItem("1", "text")]
        raise BackendFaultError("the source broke")

    with pytest.raises(BackendFaultError, match="source"):
        async for _ in engine.embed_stream(broken(), PLAIN, client=ME):
            pass
    assert (await engine.embed(["after"], PLAIN, client=ME)).items
