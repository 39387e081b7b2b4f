"""The way of texts to tickets and back: the error that fails a call, texts computed once, and the facts of each text."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from runed.backends.base import EmbeddingBatch, TextInput
from runed.caching.cache import VectorCache
from runed.domain.model import ModelTraits
from runed.domain.requests import (
    Centroid,
    CentroidHeader,
    Embedding,
    EmbedOptions,
    Lane,
    Role,
    StreamItem,
    Truncate,
    VectorSpace,
)
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    EmptyTextError,
    InvalidTextError,
    NoCentroidSetError,
    QueueFullError,
    RunedError,
    ShuttingDownError,
    TextTooLongError,
)
from runed.metrics import Metrics
from runed.routing.store import CentroidStore
from runed.scheduling.batcher import Batcher
from runed.scheduling.claims import Claim, Terms, redeem
from runed.scheduling.queue import Computed, QueueEntry, QueueLimits
from runed.scheduling.scheduler import Scheduler
from runed.scheduling.tickets import Ticket
from tests.scheduling.virtual import Outcome, ScriptedBackend, Step, settle, vector_of, virtual_time
from tests.support import capture_logs

PLAIN = EmbedOptions()
ME = "unix:1"
LONG = "word " * 600  # the model reads 512 tokens, two of which are special


class Stoppable(ScriptedBackend):
    """A scripted backend that a scheduler owns."""

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        return [chr(token) for token in tokens]


class Headless(Stoppable):
    """A backend whose vectors begin with zeros, except the vector of "sound"."""

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        batch = await super().embed(texts)
        rows = [[1.0] * 8 if text == "sound" else [0.0] * 4 + [1.0] * 4 for text in texts]
        vectors = [(np.array(row, "<f4") / np.linalg.norm(row)).astype("<f4").tobytes() for row in rows]
        return EmbeddingBatch(vectors, batch.tokens)


def scheduler_of(
    backend: Stoppable,
    *,
    queue: QueueLimits = QueueLimits(10_000, 10_000_000),  # noqa: B008 # immutable
    cache_bytes: int = 1_000_000,
    min_dimensions: int = 0,
    idle_timeout: float = 0,
) -> Scheduler:
    metrics = Metrics()
    return Scheduler(
        backend,
        batcher=Batcher(limits=queue, metrics=metrics),
        idle_timeout=idle_timeout,
        cache=VectorCache(cache_bytes),
        metrics=metrics,
        centroids=CentroidStore(Path("/nowhere"), dim=8, model="m"),
        traits=ModelTraits(query_prompt="find {instruction}: ", default_instruction="it", min_dimensions=min_dimensions),
    )


def kinds(items: Iterable[Embedding | RunedError]) -> list[type]:
    return [type(item) for item in items]


def embeddings(items: Iterable[Embedding | RunedError]) -> list[Embedding]:
    found = list(items)
    assert kinds(found) == [Embedding] * len(found)
    return [item for item in found if isinstance(item, Embedding)]


async def chunks(*texts: str) -> AsyncIterator[Sequence[StreamItem]]:
    yield [StreamItem(text, text) for text in texts]


# Which error fails a call


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("per_item_errors", [False, True])
@pytest.mark.parametrize(
    ("outcome", "error", "retry_after"),
    [
        pytest.param("unavailable", BackendUnavailableError, 1.0, id="dead engine"),
        pytest.param("interrupted", BackendUnavailableError, 1.0, id="interrupted engine"),
        pytest.param("stray", RunedError, None, id="bug"),
        pytest.param("one too few", RunedError, None, id="backend that loses a text"),
    ],
)
@virtual_time
async def test_an_error_that_is_no_texts_fault_fails_the_call_and_drops_the_rest(
    outcome: Outcome, error: type[RunedError], retry_after: float | None, *, per_item_errors: bool, lane: Lane
) -> None:
    backend = Stoppable(texts=2, script=[Step(outcome)])
    scheduler = scheduler_of(backend)
    texts = ["", *"abcdef"] if per_item_errors else [*"abcdef"]
    with capture_logs(), pytest.raises(error) as caught:
        await scheduler.embed(texts, EmbedOptions(lane=lane), client=ME, per_item_errors=per_item_errors)
    assert type(caught.value) is error
    assert caught.value.retry_after == retry_after
    bug = "the daemon failed at this call; its log says where, please report it"
    told = {"unavailable": "it died", "interrupted": "the engine was interrupted; try again"}
    assert str(caught.value) == told.get(outcome, bug)
    await settle()
    assert scheduler.load.queued[lane] == (0, 0)
    assert len(backend.calls) == 2  # the second text was on its way when the first one ended
    await scheduler.close()


@virtual_time
async def test_a_dead_engine_that_comes_later_fails_the_call_with_what_was_embedded() -> None:
    backend = Stoppable(texts=1, script=[Step(), Step("fault"), Step("unavailable", seconds=1.0)])
    scheduler = scheduler_of(backend)
    with pytest.raises(BackendUnavailableError):
        await scheduler.embed([*"abcdef"], PLAIN, client=ME, per_item_errors=True)
    await settle()
    assert backend.batches == [["a"], ["b"], ["c"], ["d"]]  # the last one was on its way already
    await scheduler.close()


@pytest.mark.parametrize("per_item_errors", [False, True])
@virtual_time
async def test_a_full_queue_fails_the_call_and_leaves_no_twin_behind(*, per_item_errors: bool) -> None:
    backend = Stoppable(texts=1, script=[Step(seconds=1.0)] * 9)
    scheduler = scheduler_of(backend, queue=QueueLimits(4, 1000))
    first = asyncio.create_task(scheduler.embed([*"abc"], PLAIN, client=ME))
    await settle()
    with pytest.raises(QueueFullError) as caught:
        await scheduler.embed([*"acxyz"[:5]], PLAIN, client="unix:2", per_item_errors=per_item_errors)
    assert caught.value.retry_after == 1.0
    assert scheduler.load.stats.refused_requests == 1
    assert scheduler.load.stats.shared_texts == 0
    await first
    embeddings((await scheduler.embed([*"xyz"], PLAIN, client="unix:2")).items)
    assert backend.batches == [["a"], ["b"], ["c"], ["x"], ["y"], ["z"]]


@pytest.mark.parametrize("per_item_errors", [False, True])
@virtual_time
async def test_a_shutdown_fails_the_calls_in_flight(*, per_item_errors: bool) -> None:
    scheduler = scheduler_of(Stoppable(texts=1, script=[Step(seconds=1.0)] * 3))
    call = asyncio.create_task(scheduler.embed([*"abc"], PLAIN, client=ME, per_item_errors=per_item_errors))
    await asyncio.sleep(1.5)
    await scheduler.close()
    with pytest.raises(ShuttingDownError):
        await call


@pytest.mark.parametrize("per_item_errors", [False, True])
@virtual_time
async def test_a_backend_that_cannot_count_fails_the_call(*, per_item_errors: bool) -> None:
    backend = Stoppable(counts=[Step("unavailable")])
    scheduler = scheduler_of(backend)
    with pytest.raises(BackendUnavailableError):
        await scheduler.embed(["short", LONG], PLAIN, client=ME, per_item_errors=per_item_errors)
    assert backend.calls == []


@pytest.mark.parametrize("per_item_errors", [False, True])
@virtual_time
async def test_a_route_without_a_set_fails_the_call_before_anything_is_computed(*, per_item_errors: bool) -> None:
    backend = Stoppable()
    with pytest.raises(NoCentroidSetError):
        await scheduler_of(backend).embed(["a", ""], EmbedOptions(with_route=True), client=ME, per_item_errors=per_item_errors)
    assert backend.calls == []


@pytest.mark.parametrize(
    ("outcome", "error"), [("fault", BackendFaultError), ("invalid", InvalidTextError), ("too long", TextTooLongError)]
)
@virtual_time
async def test_an_error_of_a_text_is_its_items_or_fails_a_strict_call(outcome: Outcome, error: type[RunedError]) -> None:
    script = [Step(outcome), Step(), Step(outcome)]  # both at once, and one by one
    scheduler = scheduler_of(Stoppable(script=script))
    with capture_logs():
        answer = await scheduler.embed(["good", "bad", ""], PLAIN, client=ME, per_item_errors=True)
        assert kinds(answer.items) == [Embedding, error, EmptyTextError]
        assert scheduler.load.stats.total_texts == 1
        strict = scheduler_of(Stoppable(script=script))
        with pytest.raises(error):
            await strict.embed(["good", "bad"], PLAIN, client=ME)
        assert strict.load.stats.total_texts == 0


class CountingFuture(asyncio.Future[Computed]):
    """A future that counts the waits for any object of its class."""

    waits = 0

    def add_done_callback(self, fn: Callable[[Self], object], /, *, context: Context | None = None) -> None:
        type(self).waits += 1
        super().add_done_callback(fn, context=context)


@virtual_time
async def test_texts_that_fail_one_after_the_other_are_each_waited_for_once() -> None:
    loop = asyncio.get_running_loop()
    futures = [CountingFuture() for _ in range(500)]
    entry = partial(QueueEntry, input="tea", tokens=3, exact=True, size=3, lane=Lane.BULK, client=ME)
    claims = [Claim("tea", state=Ticket(entry(future=future), 0)) for future in futures]
    for delay, future in enumerate(futures):
        loop.call_later(delay, future.set_exception, BackendFaultError("NaN"))
    terms = Terms(
        lane=Lane.BULK,
        client=ME,
        prompt="",
        truncate=Truncate.NONE,
        dimensions=8,
        space=VectorSpace(fingerprint="f", prompt=""),
    )
    assert kinds(await redeem(claims, terms)) == [BackendFaultError] * 500
    assert CountingFuture.waits <= 2 * len(futures)


@virtual_time
async def test_the_first_text_at_fault_is_named_and_what_needs_no_engine_is_checked_first() -> None:
    backend = Stoppable()
    scheduler = scheduler_of(backend)
    with pytest.raises(EmptyTextError) as caught:
        await scheduler.embed([LONG, "good", " ", "a\0b"], PLAIN, client=ME)
    assert caught.value.metadata == {"index": "2"}
    assert "text 2 of the batch" in caught.value.message
    assert backend.counted == []
    with pytest.raises(TextTooLongError) as too_long:
        await scheduler.embed(["good", LONG, LONG + "too"], PLAIN, client=ME)
    assert too_long.value.metadata == {"tokens": "602", "limit": "512", "index": "1"}
    assert "text 1 of the batch" in too_long.value.message
    with pytest.raises(EmptyTextError, match=r"^the text is empty") as alone:
        await scheduler.embed([""], PLAIN, client=ME)
    assert alone.value.metadata == {"index": "0"}
    assert backend.calls == []


@virtual_time
async def test_a_text_that_is_too_long_leaves_those_behind_it_alone() -> None:
    answer = await scheduler_of(Stoppable()).embed(["good", LONG, "fine"], PLAIN, client=ME, per_item_errors=True)
    assert kinds(answer.items) == [Embedding, TextTooLongError, Embedding]


@virtual_time
async def test_a_stream_tells_errors_of_texts_beside_their_ids_and_ends_with_others() -> None:
    scheduler = scheduler_of(Stoppable(texts=1, script=[Step(), Step("unavailable")]))
    told: dict[str, Embedding | RunedError] = {}

    async def listen() -> None:
        async for answer in scheduler.embed_stream(chunks("", "a", "b", "c"), PLAIN, client=ME):
            told.update({result.id: result.outcome for result in answer.results})

    with pytest.raises(BackendUnavailableError):
        await listen()
    assert [*told] == ["", "a"]
    assert kinds(told.values()) == [EmptyTextError, Embedding]
    assert isinstance(told[""], EmptyTextError)
    assert told[""].metadata == {}
    assert scheduler.load.queued[Lane.BULK] == (0, 0)
    assert scheduler.load.stats.total_texts == 1


# Facts of a text


@pytest.mark.parametrize("truncate", [Truncate.END, Truncate.START])
@virtual_time
async def test_a_truncated_text_tells_its_tokens_before_and_after_wherever_its_vector_comes_from(truncate: Truncate) -> None:
    backend = Stoppable(tokens=10_000)
    scheduler = scheduler_of(backend)
    options = EmbedOptions(truncate=truncate)

    async def embed() -> tuple[int, int, bool, bool]:
        [item] = embeddings((await scheduler.embed([LONG], options, client=ME)).items)
        return item.tokens, item.total_tokens, item.truncated, item.cached

    computed, joined = await asyncio.gather(embed(), embed())
    assert computed == (512, 602, True, False)
    assert joined == (512, 602, True, True)
    assert await embed() == (512, 602, True, True)  # from the cache
    assert len(backend.calls) == 1
    [short] = embeddings((await scheduler.embed(["one two"], options, client=ME)).items)
    assert (short.tokens, short.total_tokens, short.truncated) == (4, 4, False)


@virtual_time
async def test_a_vector_that_became_ready_while_its_twin_was_counted_is_a_hit() -> None:
    backend = Stoppable(counts=[Step(seconds=5.0)])
    scheduler = scheduler_of(backend)
    options = EmbedOptions(truncate=Truncate.END)
    slow = asyncio.create_task(scheduler.embed([LONG], options, client=ME))
    await settle()
    await scheduler.embed([LONG], options, client="unix:2")
    [item] = embeddings((await slow).items)
    assert (item.cached, item.total_tokens) == (True, 602)
    assert len(backend.calls) == 1
    stats = scheduler.load.stats
    assert (stats.cache_hits, stats.shared_texts, stats.total_texts) == (1, 0, 2)


@virtual_time
async def test_prompts_ways_to_cut_and_texts_have_vectors_of_their_own() -> None:
    backend = Stoppable()
    scheduler = scheduler_of(backend)
    for options, text in [
        (PLAIN, "text"),
        (EmbedOptions(role=Role.QUERY), "text"),
        (EmbedOptions(role=Role.QUERY, instruction="songs"), "text"),
        (EmbedOptions(truncate=Truncate.END), LONG),
        (EmbedOptions(truncate=Truncate.START), LONG),
        (PLAIN, "other"),
    ]:
        for known in (False, True):
            [item] = embeddings((await scheduler.embed([text], options, client=ME)).items)
            assert item.cached is known
            assert item.vector == vector_of(backend.batches[-1][0])
    # A text that is short enough has one vector, for any way of cutting.
    [item] = embeddings((await scheduler.embed(["text"], EmbedOptions(truncate=Truncate.END), client=ME)).items)
    assert item.cached
    assert [batch[0] for batch in backend.batches][:3] == ["text", "find it: text", "find songs: text"]


# No work twice, and no work without a caller


@virtual_time
async def test_twins_are_computed_once_within_a_call_and_across_calls() -> None:
    backend = Stoppable(texts=10)
    scheduler = scheduler_of(backend)
    answers = await asyncio.gather(
        scheduler.embed(["a", "b", "a"], PLAIN, client=ME), scheduler.embed(["b", "c"], PLAIN, client="unix:2")
    )
    told = [[item.cached for item in embeddings(answer.items)] for answer in answers]
    assert told == [[False, False, True], [True, False]]
    assert sorted(str(text) for batch in backend.batches for text in batch) == ["a", "b", "c"]
    assert scheduler.load.stats.shared_texts == 2
    assert scheduler.load.stats.cache_hits == 0
    before = len(backend.batches)
    again = await scheduler.embed(["c", "c", "new", "c"], PLAIN, client=ME)
    assert [item.cached for item in embeddings(again.items)] == [True, True, False, True]
    assert backend.batches[before:] == [["new"]]
    assert scheduler.load.stats.cache_hits == 3


@virtual_time
async def test_without_a_cache_a_text_is_shared_in_flight_only() -> None:
    backend = Stoppable()
    scheduler = scheduler_of(backend, cache_bytes=0)
    await asyncio.gather(*(scheduler.embed(["a"], PLAIN, client=ME) for _ in range(3)))
    await settle()
    assert scheduler._desk._tickets == {}
    await scheduler.embed(["a"], PLAIN, client=ME)
    assert backend.batches == [["a"], ["a"]]


@virtual_time
async def test_a_text_is_computed_for_the_twin_that_stays_and_for_nobody_once_all_have_gone() -> None:
    backend = Stoppable(texts=1, script=[Step(seconds=1.0)] * 9)
    scheduler = scheduler_of(backend)
    blocker = asyncio.create_task(scheduler.embed(["blocker"], PLAIN, client=ME))
    await settle()
    twins = [asyncio.create_task(scheduler.embed(["twin"], PLAIN, client=ME)) for _ in range(3)]
    gone = [asyncio.create_task(scheduler.embed(["gone"], PLAIN, client=ME)) for _ in range(2)]
    await settle()
    for task in [*twins[:2], *gone]:
        task.cancel()
    await settle()
    assert scheduler.load.queued[Lane.INTERACTIVE] == (1, 4)
    late = asyncio.create_task(scheduler.embed(["gone"], PLAIN, client=ME))  # its twins were dropped, so it is queued again
    embeddings((await twins[2]).items)
    embeddings((await late).items)
    embeddings((await blocker).items)
    assert backend.batches == [["blocker"], ["twin"], ["gone"]]


@virtual_time
async def test_a_text_that_failed_is_computed_anew_and_not_joined() -> None:
    backend = Stoppable(texts=1, script=[Step("unavailable")])
    scheduler = scheduler_of(backend)
    first = asyncio.create_task(scheduler.embed(["a"], PLAIN, client=ME))
    with pytest.raises(BackendUnavailableError):
        await first
    [item] = embeddings((await scheduler.embed(["a"], PLAIN, client=ME)).items)
    assert not item.cached


@virtual_time
async def test_an_interactive_twin_takes_a_bulk_text_along_but_not_the_other_way_round() -> None:
    backend = Stoppable(texts=1, script=[Step(seconds=1.0)] * 9)
    scheduler = scheduler_of(backend)
    bulk, urgent = EmbedOptions(lane=Lane.BULK), EmbedOptions(lane=Lane.INTERACTIVE)
    job = asyncio.create_task(scheduler.embed([*"abcd"], bulk, client=ME))
    await asyncio.sleep(0.5)  # counted, and the first of them in flight
    other = asyncio.create_task(scheduler.embed(["d"], bulk, client="unix:2"))
    await settle()
    assert scheduler.load.queued[Lane.INTERACTIVE] == (0, 0)
    soon = asyncio.create_task(scheduler.embed(["c"], urgent, client="unix:3"))
    await settle()
    assert scheduler.load.queued[Lane.INTERACTIVE] == (1, 1)
    await asyncio.gather(job, other, soon)
    assert backend.batches == [["a"], ["c"], ["b"], ["d"]]


@virtual_time
async def test_a_text_from_the_cache_keeps_no_engine_awake_and_one_that_is_computed_does() -> None:
    stops: list[float] = []

    class Sleepy(Stoppable):
        async def stop(self) -> None:
            stops.append(asyncio.get_running_loop().time())

    scheduler = scheduler_of(Sleepy(script=[Step(seconds=5.0)]), idle_timeout=1.0)
    began = asyncio.get_running_loop().time()
    await scheduler.embed(["a"], PLAIN, client=ME)
    await asyncio.sleep(0.75)
    await scheduler.embed(["a"], PLAIN, client=ME)
    await asyncio.sleep(0.5)
    assert [round(stop - began, 6) for stop in stops] == [6.0]


# Queueing


@virtual_time
async def test_texts_of_a_bulk_call_are_packed_and_interactive_ones_go_in_order() -> None:
    texts = ["w " * 7, "w " * 6, "w w", "w " * 3]  # 9, 8, 4 and 5 tokens: two micro-batches of 13, or three in this order
    for lane in Lane:
        backend = Stoppable(texts=8, tokens=13)
        await scheduler_of(backend).embed(texts, EmbedOptions(lane=lane), client=ME)
        if lane is Lane.BULK:
            assert backend.batches == [[texts[0], texts[2]], [texts[1], texts[3]]]
            assert backend.counted == [texts]  # before the first micro-batch, all at once
        else:
            assert [text for batch in backend.batches for text in batch] == texts


@virtual_time
async def test_a_lone_bulk_text_is_not_counted_ahead() -> None:
    backend = Stoppable()
    scheduler = scheduler_of(backend)
    await scheduler.embed(["one"], EmbedOptions(lane=Lane.BULK), client=ME)
    await scheduler.embed(["one", "two"], EmbedOptions(lane=Lane.BULK), client=ME)
    assert backend.counted == []


@virtual_time
async def test_two_bulk_texts_are_counted_before_they_are_sent() -> None:
    backend = Stoppable(tokens=13)  # two texts of 5 tokens each, or 12 by their bounds
    await scheduler_of(backend).embed(["a b c", "d e f"], EmbedOptions(lane=Lane.BULK), client=ME)
    assert backend.batches == [["a b c", "d e f"]]


@virtual_time
async def test_clients_take_turns() -> None:
    backend = Stoppable(texts=1)
    scheduler = scheduler_of(backend)
    job = asyncio.create_task(scheduler.embed([f"{number}" for number in range(10)], PLAIN, client=ME))
    await asyncio.sleep(0.005)
    await scheduler.embed(["other"], EmbedOptions(lane=Lane.BULK), client="unix:2")
    assert len(backend.calls) <= 3
    await job


@pytest.mark.parametrize(("texts", "lane"), [(8, Lane.INTERACTIVE), (9, Lane.BULK)])
@virtual_time
async def test_the_lane_follows_from_the_size_of_the_call(texts: int, lane: Lane) -> None:
    scheduler = scheduler_of(Stoppable(texts=1))
    call = asyncio.create_task(scheduler.embed([f"text {number}" for number in range(texts)], PLAIN, client=ME))
    await asyncio.sleep(0.005)
    assert scheduler.load.queued[lane][0] == texts - 1
    await call


@virtual_time
async def test_a_stream_waits_for_room_and_is_never_refused() -> None:
    scheduler = scheduler_of(Stoppable(texts=2), queue=QueueLimits(8, 1000))

    async def stream(number: int) -> set[str]:
        answers = scheduler.embed_stream(chunks(*(f"{number} {n}" for n in range(20))), PLAIN, client=f"unix:{number}")
        return {result.id async for answer in answers for result in answer.results}

    told = await asyncio.gather(*(stream(number) for number in range(3)))
    assert [len(ids) for ids in told] == [20, 20, 20]
    assert scheduler.load.stats.refused_requests == 0


# Routes and dimensions


async def install(scheduler: Scheduler, home: Path) -> None:
    centroids = np.eye(8, dtype="<f4")

    async def batches() -> AsyncIterator[Iterable[Centroid]]:
        yield [Centroid(number, row.tobytes()) for number, row in enumerate(centroids)]

    scheduler.centroids = CentroidStore(home / "centroids", dim=8, model="m")
    await scheduler.centroids.install(CentroidHeader(version="", dim=8, nlist=8, preset=""), batches())


@pytest.mark.parametrize("with_route", [False, True])
@pytest.mark.parametrize("cached", [False, True])
async def test_vector_that_cannot_be_cut_has_an_error_of_its_own(home: Path, *, with_route: bool, cached: bool) -> None:
    scheduler = scheduler_of(Headless(), min_dimensions=2)
    await install(scheduler, home)
    texts = ["sound", "headless"]
    options = EmbedOptions(dimensions=4, with_route=with_route)
    if cached:
        whole = await scheduler.embed(texts, PLAIN, client=ME)
        assert [len(item.vector) for item in embeddings(whole.items)] == [32, 32]
    first, second = (await scheduler.embed(texts, options, client=ME, per_item_errors=True)).items
    assert isinstance(second, BackendFaultError)
    assert isinstance(first, Embedding)
    assert np.allclose(np.frombuffer(first.vector, "<f4"), [0.5] * 4)
    assert first.cached is cached
    with pytest.raises(BackendFaultError, match="first 4 values"):
        await scheduler.embed(texts, options, client=ME)
    results = [
        result
        async for answer in scheduler.embed_stream(chunks(*texts), EmbedOptions(dimensions=4), client=ME)
        for result in answer.results
    ]
    assert {result.id: type(result.outcome) for result in results} == {"sound": Embedding, "headless": BackendFaultError}
    await scheduler.close()


async def test_a_route_is_that_of_the_whole_vector(home: Path) -> None:
    scheduler = scheduler_of(Headless(), min_dimensions=2)
    await install(scheduler, home)
    answer = await scheduler.embed(["x"], EmbedOptions(dimensions=6, with_route=True), client=ME)
    [item] = embeddings(answer.items)
    assert item.cluster_id == 4
    assert answer.centroid_set_version == scheduler.centroids.version != ""
    assert len(item.vector) == 6 * 4
    await scheduler.close()


def test_a_claim_takes_little_memory() -> None:
    texts = [f"text {number}" for number in range(2000)]
    tracemalloc.start()
    claims = [Claim(text, index, len(texts)) for index, text in enumerate(texts)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert claims[1].name[0].startswith("text 1 of the batch")
    assert taken / len(claims) < 200
