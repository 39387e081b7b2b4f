"""Engines on other machines: several micro-batches at once, beside those of this machine, and tokens that nobody counts."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from runed.backends.base import BatchLimits, Counting
from runed.domain.requests import Lane, Truncate
from runed.errors import BackendUnavailableError, RunedError, ShuttingDownError
from runed.scheduling.batcher import Batcher
from runed.scheduling.blanks import BlankFinder
from runed.scheduling.line import Line
from runed.scheduling.preparing import STREAMED, Prepared, Preparer
from runed.scheduling.queue import QueueEntry, QueueLimits
from tests.scheduling.virtual import Notes, ScriptedBackend, Step, make_entry, settle, tokens_of, vector_of, virtual_time

PLENTY = QueueLimits(texts=100_000, bytes=10**9)


def far(flights: int = 4, seconds: float = 1.0, counting: Counting = Counting.SUM, **options: object) -> ScriptedBackend:
    script = iter(lambda: Step(seconds=seconds), None)
    return ScriptedBackend(script=script, flights=flights, counting=counting, by_estimate=True, **options)  # type: ignore[arg-type] # options


def near(seconds: float = 1.0) -> ScriptedBackend:
    return ScriptedBackend(script=iter(lambda: Step(seconds=seconds), None))


class Shop:
    """A batcher with one scripted backend for each model."""

    def __init__(self, **backends: ScriptedBackend) -> None:
        self.batcher = Batcher(limits=PLENTY, metrics=Notes())
        self.backends = backends
        self.lines: dict[str, Line] = {name: self.batcher.open(backend, name) for name, backend in backends.items()}

    def submit(self, model: str, *texts: str, lane: Lane = Lane.INTERACTIVE) -> list[QueueEntry]:
        entries = [make_entry(text, lane=lane) for text in texts]
        for entry in entries:
            entry.model = model
        self.batcher.submit(self.lines[model], entries)
        return entries

    async def close(self) -> None:
        for line in list(self.lines.values()):
            await self.batcher.close(line)


async def answers(entries: list[QueueEntry]) -> list[bytes]:
    return [done.vector for done in await asyncio.gather(*(entry.future for entry in entries))]


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_as_many_micro_batches_are_on_their_way_as_the_engine_takes() -> None:
    shop = Shop(far=far(flights=4))
    began = now()
    texts = [f"text {number}" for number in range(40)]
    assert await answers(shop.submit("far", *texts, lane=Lane.BULK)) == [vector_of(text) for text in texts]
    assert 3 <= now() - began < 3.1, "ten micro-batches, four at once"
    assert not shop.batcher._workers
    await shop.close()


@pytest.mark.parametrize("first", ["near", "far"])
@virtual_time
async def test_engines_of_both_kinds_do_not_wait_for_each_other(first: str) -> None:
    shop = Shop(near=near(seconds=3), far=far(flights=2))
    second = "far" if first == "near" else "near"
    began = now()
    one = shop.submit(first, "one")
    await asyncio.sleep(0.5)
    other = shop.submit(second, "other")
    await answers(one + other)
    assert now() - began < 3.6
    await shop.close()


@virtual_time
async def test_texts_for_another_machine_are_sent_while_this_one_computes_and_the_other_way_round() -> None:
    shop = Shop(near=near(seconds=1), far=far(flights=2))
    local = shop.submit("near", *(f"near {number}" for number in range(40)), lane=Lane.BULK)
    remote = shop.submit("far", *(f"far {number}" for number in range(40)), lane=Lane.BULK)
    began = now()
    await answers(remote)
    assert now() - began < 5.2, "ten micro-batches, two at once"
    await answers(local)
    assert now() - began < 11.2
    assert max(len(call.inputs) for call in shop.backends["near"].calls) <= 4
    await shop.close()


@virtual_time
async def test_of_eight_flights_one_is_kept_for_interactive_texts() -> None:
    shop = Shop(far=far(flights=8))
    bulk = shop.submit("far", *(f"bulk {number}" for number in range(100)), lane=Lane.BULK)
    await asyncio.sleep(0.5)
    assert shop.backends["far"].active == 7
    began = now()
    await answers(shop.submit("far", "somebody waits"))
    assert now() - began < 1.1
    await answers(bulk)
    await shop.close()


@virtual_time
async def test_of_a_few_flights_one_is_kept_while_interactive_texts_are_likely_and_bulk_ones_stay_large() -> None:
    shop = Shop(far=far(flights=4))
    await answers(shop.submit("far", "interactive"))
    began = now()
    job = shop.submit("far", *(f"text {number}" for number in range(40)), lane=Lane.BULK)
    await asyncio.sleep(0.5)
    assert [len(batch) for batch in shop.lines["far"].flights] == [4, 4, 4]
    await answers(shop.submit("far", "another"))
    assert now() - began < 1.6, "it waited for no bulk text"
    await answers(job)
    assert now() - began < 4.6, "ten micro-batches, three at once"
    await shop.close()


@virtual_time
async def test_a_micro_batch_that_nobody_waits_for_is_cancelled() -> None:
    shop = Shop(far=far(flights=1))
    left = shop.submit("far", "one", "two")
    await asyncio.sleep(0.1)
    left[0].future.cancel()
    await asyncio.sleep(0.1)
    assert shop.backends["far"].active == 1, "the second one is still wanted"
    left[1].future.cancel()
    await settle()
    await settle()
    assert shop.backends["far"].active == 0
    began = now()
    await answers(shop.submit("far", "three"))
    assert now() - began < 1.1
    await shop.close()


@virtual_time
async def test_the_end_of_a_line_fails_all_that_is_on_its_way() -> None:
    shop = Shop(far=far(flights=4), near=near(seconds=5))
    gone = shop.submit("far", *(f"text {number}" for number in range(30)), lane=Lane.BULK)
    stays = shop.submit("near", "stays")
    await asyncio.sleep(0.5)
    await shop.batcher.close(shop.lines["far"])
    for entry in gone:
        with pytest.raises(ShuttingDownError):
            await entry.future
    assert shop.backends["far"].active == 0
    assert await answers(stays) == [vector_of("stays")]
    await shop.batcher.close(shop.lines["near"])


@virtual_time
async def test_a_failed_micro_batch_leaves_the_others() -> None:
    backend = ScriptedBackend(script=[Step("unavailable", 0.1), *[Step(seconds=1)] * 9], flights=3, counting=Counting.SUM)
    shop = Shop(far=backend)
    entries = shop.submit("far", *(f"text {number}" for number in range(12)), lane=Lane.BULK)
    outcomes = await asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)
    assert sum(isinstance(outcome, BackendUnavailableError) for outcome in outcomes) == 4
    assert not shop.batcher._workers
    await shop.close()


class TestTokens:
    @virtual_time
    async def test_the_sum_of_a_batch_is_shared_out_and_a_single_text_is_exact(self) -> None:
        shop = Shop(far=far())
        texts = ["one two three four", "five", "six seven"]
        done = await asyncio.gather(*(entry.future for entry in shop.submit("far", *texts)))
        assert sum(each.tokens for each in done) == sum(map(tokens_of, texts))
        assert done[0].tokens > done[2].tokens > done[1].tokens >= 1
        [alone] = await asyncio.gather(*(entry.future for entry in shop.submit("far", texts[0])))
        assert alone.tokens == tokens_of(texts[0])
        assert not shop.backends["far"].counted
        await shop.close()

    @virtual_time
    async def test_they_are_unknown_where_nobody_tells_them(self) -> None:
        shop = Shop(far=far(tells_tokens=False))
        done = await asyncio.gather(*(entry.future for entry in shop.submit("far", "one", "two")))
        assert [each.tokens for each in done] == [0, 0]
        assert shop.lines["far"].pace.seconds_per_token
        await shop.close()

    @virtual_time
    async def test_long_texts_go_to_an_engine_that_counts_nothing_as_they_are(self) -> None:
        preparer = Preparer(far(max_tokens=10))
        [made] = await preparer.prepare(["word " * 100], prompt="", truncate=Truncate.END, name=lambda _: STREAMED)
        assert isinstance(made, Prepared)
        assert (made.input, made.exact) == ("word " * 100, False)

    @pytest.mark.parametrize("truncate", [Truncate.END, Truncate.START])
    @pytest.mark.parametrize("words", [9, 30, 1000])
    @virtual_time
    async def test_a_text_is_cut_by_its_characters_where_counting_costs_a_request(self, words: int, truncate: Truncate) -> None:
        backend = far(counting=Counting.ASKED, max_tokens=10)
        text = " ".join(f"w{number}" for number in range(words))
        [made] = await Preparer(backend).prepare([text], prompt="a prompt: ", truncate=truncate, name=lambda _: STREAMED)
        assert isinstance(made, Prepared)
        assert isinstance(made.input, str)
        assert made.input.startswith("a prompt: ")
        assert 6 <= made.tokens == tokens_of(made.input) <= 10
        assert made.total_tokens == tokens_of(f"a prompt: {text}")
        kept = made.input.removeprefix("a prompt: ")
        assert text.startswith(kept) if truncate is Truncate.END else text.endswith(kept)
        assert len(backend.counted) <= 14

    @virtual_time
    async def test_a_prompt_that_leaves_no_room_is_told(self) -> None:
        backend = far(counting=Counting.ASKED, max_tokens=4)
        prompt = "a prompt of many words: "
        [made] = await Preparer(backend).prepare(["x y"], prompt=prompt, truncate=Truncate.END, name=lambda _: STREAMED)
        assert isinstance(made, RunedError)
        assert "leaves no room" in made.message

    @virtual_time
    async def test_texts_that_nobody_sees_are_found_without_a_tokenizer(self) -> None:
        finder = BlankFinder(far())
        assert finder.is_doubtful("\u200b\u2060")
        assert await finder.judge(["\u200b\u2060", "☺", "..."]) == [True, False, False]


def test_an_engine_of_this_machine_is_the_usual_one() -> None:
    assert BatchLimits(4, 100) == BatchLimits(4, 100, by_estimate=False, flights=0, counting=Counting.EACH)


@virtual_time
async def test_a_caller_that_leaves_amid_a_retry_is_no_failure() -> None:
    shop = Shop(far=far(flights=2, seconds=10))
    entries = shop.submit("far", "one")
    waiting = asyncio.create_task(answers(entries))
    await asyncio.sleep(0.5)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    entries[0].future.cancel()
    await settle()
    await settle()
    assert not shop.lines["far"].flights
    await shop.close()
