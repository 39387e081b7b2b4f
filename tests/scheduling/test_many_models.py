"""Several models share one queue and one batcher: lanes go before models, and an engine that starts holds nobody up."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from runed.backends.base import BackendState, BackendStatus, BatchLimits
from runed.domain.requests import Lane
from runed.errors import BackendUnavailableError, QueueFullError, ShuttingDownError
from runed.scheduling.batcher import Batcher
from runed.scheduling.line import Line
from runed.scheduling.queue import FairQueue, QueueEntry, QueueLimits
from tests.scheduling.virtual import Notes, ScriptedBackend, Step, make_entry, settle, tokens_of, vector_of, virtual_time

PLENTY = QueueLimits(texts=100_000, bytes=10**9)
LIMITS = BatchLimits(texts=4, tokens=100)
BOTH = {"a": LIMITS, "b": LIMITS}


def entry(model: str, name: str, *, lane: Lane = Lane.BULK, client: str = "unix:1", tokens: int = 10) -> QueueEntry:
    made = make_entry(name, lane=lane, client=client, tokens=tokens, exact=True)
    made.model = model
    return made


def names(entries: list[QueueEntry]) -> list[str]:
    return [str(entry.input) for entry in entries]


class Shop:
    """A batcher with one scripted backend for each model."""

    def __init__(self, limits: QueueLimits = PLENTY, **backends: ScriptedBackend) -> None:
        self.batcher = Batcher(limits=limits, metrics=Notes())
        self.backends = backends
        self.lines: dict[str, Line] = {name: self.batcher.open(backend, name) for name, backend in backends.items()}
        self.order: list[str] = []
        for name, backend in backends.items():
            backend.on_embed = lambda texts, name=name: self.order.extend([name] * len(texts))  # type: ignore[misc] # its default

    def submit(self, model: str, *texts: str, lane: Lane = Lane.INTERACTIVE, client: str = "unix:1") -> list[QueueEntry]:
        entries = [make_entry(text, lane=lane, client=client, exact=True) for text in texts]
        for made in entries:
            made.model = model
        self.batcher.submit(self.lines[model], entries)
        return entries

    async def close(self) -> None:
        for line in list(self.lines.values()):
            await self.batcher.close(line)


async def vectors(entries: list[QueueEntry]) -> list[bytes]:
    return [computed.vector for computed in await asyncio.gather(*(entry.future for entry in entries))]


# The queue


@virtual_time
async def test_a_micro_batch_is_of_one_model() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a" if number % 2 else "b", str(number)) for number in range(8)])
    batches = []
    while batch := queue.take(BOTH):
        queue.settle(batch)
        batches.append((batch[0].model, names(batch)))
    assert batches == [("b", ["0", "2", "4", "6"]), ("a", ["1", "3", "5", "7"])]
    assert queue.models() == set()


@virtual_time
async def test_only_offered_models_are_taken() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a", "first"), entry("b", "second")])
    assert names(queue.take({"b": LIMITS})) == ["second"]
    assert queue.take({"b": LIMITS}) == []
    assert (queue.waiting("a"), queue.waiting("a", Lane.BULK), queue.waiting("b")) == (1, 1, 0)
    assert queue.models() == {"a"}


@virtual_time
async def test_an_interactive_text_of_one_model_goes_before_the_bulk_of_another() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a", f"bulk {number}") for number in range(12)])
    queue.settle(queue.take(BOTH))
    queue.push([entry("b", "now", lane=Lane.INTERACTIVE, client="unix:2")])
    assert names(queue.take(BOTH)) == ["now"]


@virtual_time
async def test_bulk_of_one_model_keeps_its_fifth_beside_interactive_texts_of_another() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a", f"bulk {number}") for number in range(200)])
    queue.push([entry("b", f"now {number}", lane=Lane.INTERACTIVE) for number in range(400)])
    taken: Counter[str] = Counter()
    for _ in range(50):
        batch = queue.take(BOTH)
        queue.settle(batch)
        taken[batch[0].model] += 1
    assert taken == {"a": 10, "b": 40}


@pytest.mark.parametrize(("weight", "expected"), [(1.0, {"a": 10, "b": 10}), (4.0, {"a": 16, "b": 4})])
@virtual_time
async def test_clients_of_two_models_share_the_cost_and_not_the_tokens(weight: float, expected: dict[str, int]) -> None:
    queue = FairQueue(PLENTY)
    queue.weights["b"] = weight
    for model in "ab":
        queue.push([entry(model, f"{model} {number}", client=f"unix:{model}") for number in range(100)])
    taken: Counter[str] = Counter()
    for _ in range(20):
        batch = queue.take(BOTH)
        queue.settle(batch)
        taken[batch[0].model] += 1
    assert taken == expected


@virtual_time
async def test_a_client_of_two_models_is_one_client() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a" if number % 2 else "b", f"two {number}", client="unix:two") for number in range(100)])
    queue.push([entry("a", f"one {number}", client="unix:one") for number in range(100)])
    taken: Counter[str] = Counter()
    for _ in range(20):
        batch = queue.take(BOTH)
        queue.settle(batch)
        taken.update(name.split()[0] for name in names(batch))
    assert abs(taken["one"] - taken["two"]) <= LIMITS.texts


@virtual_time
async def test_the_end_of_one_model_leaves_the_texts_of_the_others() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("a", "1"), entry("b", "2"), entry("a", "3", lane=Lane.INTERACTIVE)])
    assert sorted(names(queue.drain("a"))) == ["1", "3"]
    assert names(queue.take(BOTH)) == ["2"]


# The batcher


@virtual_time
async def test_every_text_is_answered_by_its_model_one_micro_batch_at_a_time() -> None:
    shop = Shop(a=ScriptedBackend(), b=ScriptedBackend())
    active: list[int] = []
    for backend in shop.backends.values():
        backend.on_embed = lambda _: active.append(sum(other.active for other in shop.backends.values()))
    entries = {model: shop.submit(model, *(f"{model} {number}" for number in range(20)), lane=Lane.BULK) for model in "ab"}
    for model, its_entries in entries.items():
        texts = [f"{model} {number}" for number in range(20)]
        assert await vectors(its_entries) == [vector_of(text) for text in texts]
        assert sorted(str(text) for batch in shop.backends[model].batches for text in batch) == sorted(texts)
    assert active == [0] * 10
    await shop.close()


@virtual_time
async def test_two_bulk_jobs_on_two_models_share_the_time_whatever_a_token_costs() -> None:
    slow, fast = ScriptedBackend(script=[Step(seconds=0.09)] * 1000), ScriptedBackend(script=[Step(seconds=0.01)] * 1000)
    shop = Shop(slow=slow, fast=fast)
    shop.submit("slow", *map(str, range(2000)), lane=Lane.BULK, client="unix:1")
    shop.submit("fast", *map(str, range(2000)), lane=Lane.BULK, client="unix:2")
    await asyncio.sleep(2.0)
    assert len(fast.calls) / len(slow.calls) == pytest.approx(9, rel=0.25)
    await shop.close()


@virtual_time
async def test_an_engine_that_starts_holds_up_nobody_elses_texts() -> None:
    cold = ScriptedBackend(script=[Step(seconds=5.0)], status=BackendStatus.STOPPED)
    shop = Shop(cold=cold, warm=ScriptedBackend())
    waiting = shop.submit("cold", "x")
    await settle()
    began = asyncio.get_running_loop().time()
    for _ in range(10):
        await vectors(shop.submit("warm", "y"))
    assert asyncio.get_running_loop().time() - began < 0.2
    assert not waiting[0].future.done()
    await vectors(waiting)
    await shop.close()


@virtual_time
async def test_texts_that_wait_already_go_on_when_the_next_engine_has_to_start() -> None:
    cold = ScriptedBackend(script=[Step(seconds=5.0)], status=BackendStatus.STOPPED)
    shop = Shop(cold=cold, warm=ScriptedBackend())
    waiting = shop.submit("cold", "x")
    others = shop.submit("warm", *map(str, range(12)))
    began = asyncio.get_running_loop().time()
    await vectors(others)
    assert asyncio.get_running_loop().time() - began < 0.2
    assert not waiting[0].future.done()
    await vectors(waiting)
    await shop.close()


@virtual_time
async def test_an_engine_that_dies_in_flight_holds_others_up_for_a_moment_only() -> None:
    mortal = ScriptedBackend(script=[Step(seconds=60.0)])
    shop = Shop(mortal=mortal, other=ScriptedBackend())
    waiting = shop.submit("mortal", "x")
    await asyncio.sleep(0.5)
    mortal.state = BackendState(BackendStatus.STARTING)
    began = asyncio.get_running_loop().time()
    await vectors(shop.submit("other", *map(str, range(8))))
    assert asyncio.get_running_loop().time() - began < 0.3
    assert not waiting[0].future.done()
    await vectors(waiting)
    await shop.close()


@virtual_time
async def test_a_death_shows_while_texts_of_others_wait_behind_it() -> None:
    mortal = ScriptedBackend(script=[Step(seconds=60.0)])
    shop = Shop(mortal=mortal, other=ScriptedBackend())
    shop.submit("mortal", "x")
    await settle()
    behind = shop.submit("other", "y")
    await asyncio.sleep(1.0)
    assert not behind[0].future.done()  # the engine of the other works
    mortal.state = BackendState(BackendStatus.STARTING)
    await asyncio.sleep(0.15)
    assert behind[0].future.done()
    await shop.close()


@virtual_time
async def test_the_end_of_one_model_fails_its_texts_alone() -> None:
    shop = Shop(a=ScriptedBackend(script=[Step(seconds=1.0)]), b=ScriptedBackend())
    lost = shop.submit("a", *map(str, range(8)))
    kept = shop.submit("b", *map(str, range(8)))
    await settle()
    await shop.batcher.close(shop.lines["a"], replaced=True)
    outcomes = await asyncio.gather(*(entry.future for entry in lost), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
    assert await vectors(kept) == [vector_of(str(number)) for number in range(8)]
    with pytest.raises(BackendUnavailableError, match="another engine takes over"):
        shop.submit("a", "late")
    shop.lines["a"] = shop.batcher.open(ScriptedBackend(), "a")
    assert await vectors(shop.submit("a", "again")) == [vector_of("again")]
    await shop.close()
    with pytest.raises(ShuttingDownError):
        shop.submit("b", "late")


@virtual_time
async def test_an_idle_batcher_serves_a_model_that_comes_after_the_last_one_left() -> None:
    shop = Shop(a=ScriptedBackend())
    shop.submit("a", "never taken")
    await shop.batcher.close(shop.lines["a"])
    shop.lines["b"] = shop.batcher.open(ScriptedBackend(), "b")
    assert await vectors(shop.submit("b", "x")) == [vector_of("x")]
    await shop.close()
    assert len(asyncio.all_tasks()) == 1


@virtual_time
async def test_all_models_share_one_bound() -> None:
    shop = Shop(QueueLimits(texts=4, bytes=1000), a=ScriptedBackend(texts=1), b=ScriptedBackend(texts=1))
    entries = shop.submit("a", "1", "2") + shop.submit("b", "3", "4")
    with pytest.raises(QueueFullError):
        shop.submit("b", "5")
    assert shop.batcher.depth(Lane.INTERACTIVE) == (4, 4)
    await vectors(entries)
    await shop.close()


@virtual_time
async def test_callers_of_one_model_are_not_waited_for_while_texts_of_another_wait() -> None:
    shop = Shop(a=ScriptedBackend(), b=ScriptedBackend())
    first = shop.submit("a", "1", "2")
    second = shop.submit("b", "3")
    began = asyncio.get_running_loop().time()
    await vectors(first + second)
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.02, abs=1e-6)
    await shop.close()


@virtual_time
async def test_bulk_micro_batches_of_one_model_are_small_while_interactive_texts_of_another_come() -> None:
    bulk = ScriptedBackend(texts=8, tokens=80, script=[Step(seconds=0.08), *[Step(seconds=0.02)] * 4])
    shop = Shop(a=bulk, b=ScriptedBackend())
    await vectors(shop.submit("a", *map(str, range(8)), lane=Lane.BULK))  # 24 tokens in 80 ms
    await vectors(shop.submit("b", "somebody"))  # 10 ms alone
    await vectors(shop.submit("a", *map(str, range(8)), lane=Lane.BULK))
    assert [len(batch) for batch in bulk.batches] == [8, 2, 2, 2, 2]  # 7 tokens, in 25 ms at the first speed
    assert tokens_of("0") == 3
    await shop.close()
