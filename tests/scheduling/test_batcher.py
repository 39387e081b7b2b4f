"""The batcher sends one micro-batch at a time, counts tokens exactly, and reports a failure once to each affected caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from runed.backends.base import BackendStatus, TextInput, pack
from runed.backends.llama.backend import LlamaBackend
from runed.domain.requests import Lane
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    BatchTooLargeError,
    InvalidTextError,
    QueueFullError,
    RunedError,
    ShuttingDownError,
    TextTooLongError,
)
from runed.paths import Paths
from runed.scheduling.pace import MAX_RETRY_AFTER, MIN_RETRY_AFTER
from runed.scheduling.queue import Computed, QueueEntry, QueueLimits
from tests.scheduling.virtual import (
    Notes,
    OneLine,
    Outcome,
    ScriptedBackend,
    Step,
    make_entry,
    settle,
    tokens_of,
    vector_of,
    virtual_time,
)
from tests.support import capture_logs

PLENTY = QueueLimits(texts=100_000, bytes=10**9)


def make_batcher(backend: ScriptedBackend, limits: QueueLimits = PLENTY) -> OneLine:
    return OneLine(backend, limits=limits, metrics=Notes())


def make_entries(*texts: str, lane: Lane = Lane.INTERACTIVE, client: str = "unix:1", exact: bool = False) -> list[QueueEntry]:
    return [make_entry(text, lane=lane, client=client, exact=exact) for text in texts]


async def outcomes(entries: Sequence[QueueEntry]) -> list[Computed | BaseException]:
    return await asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)


def right(*texts: TextInput) -> list[Computed]:
    return [Computed(vector_of(text), tokens_of(text)) for text in texts]


# The real engine


async def test_with_the_real_engine_tokens_are_exact_and_vectors_do_not_depend_on_company(
    home: Path, llama_server: Path, tiny_qwen3: Path
) -> None:
    backend = LlamaBackend(executable=llama_server, model=tiny_qwen3, model_sha256="0" * 64, paths=Paths(home), ctx_size=512)
    notes = Notes()
    batcher = OneLine(backend, limits=PLENTY, metrics=notes)
    texts = [f"{number} {'go ' * (number * 7 % 12)}" for number in range(60)]
    entries = [
        make_entry(text, lane=Lane.BULK if number % 3 else Lane.INTERACTIVE, client=f"unix:{number % 4}")
        for number, text in enumerate(texts)
    ]
    try:
        for entry in entries:
            batcher.submit([entry])
        answers = await asyncio.gather(*(entry.future for entry in entries))
        assert [answer.tokens for answer in answers] == [len(tokens) for tokens in await backend.tokenize(texts)]
        for text, answer in zip(texts, answers, strict=True):
            alone = np.frombuffer((await backend.embed([text])).vectors[0], dtype="<f4")
            assert alone @ np.frombuffer(answer.vector, dtype="<f4") >= 0.9999
        assert max(shared for _, shared, _, _ in notes.batches) > 1
    finally:
        await batcher.close()
        await backend.stop()


# Batches


@virtual_time
async def test_a_lone_text_on_an_idle_engine_goes_at_once_and_uncounted() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    entries = make_entries("just one")
    batcher.submit(entries)
    await settle()
    assert backend.batches == [["just one"]]
    assert await outcomes(entries) == right("just one")
    assert backend.counted == []


@virtual_time
async def test_texts_that_come_at_the_same_moment_share_a_batch() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    entries = [make_entry(f"text {number}", client=f"unix:{number}") for number in range(4)]
    for entry in entries:
        batcher.submit([entry])
    assert await outcomes(entries) == right(*(entry.input for entry in entries))
    assert len(backend.calls) == 1


@virtual_time
async def test_one_batch_is_in_flight_at_a_time_and_the_next_follows_at_once() -> None:
    backend = ScriptedBackend(texts=2)
    batcher = make_batcher(backend)
    entries = make_entries(*"abcdef", exact=True)
    batcher.submit(entries)
    await outcomes(entries)
    assert backend.batches == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [0, 0.01, 0.02]


@virtual_time
async def test_an_interactive_text_waits_for_one_batch_of_a_bulk_job_at_most() -> None:
    backend = ScriptedBackend(texts=2)
    batcher = make_batcher(backend)
    bulk = make_entries(*(f"bulk {number}" for number in range(100)), lane=Lane.BULK)
    batcher.submit(bulk)
    await asyncio.sleep(0.055)
    urgent = make_entries("now", client="unix:2")
    batcher.submit(urgent)
    assert await outcomes(urgent) == right("now")
    assert backend.batches[6] == ["now"]
    await batcher.close()
    await outcomes(bulk)


@virtual_time
async def test_the_metrics_are_told() -> None:
    backend = ScriptedBackend(texts=2)
    notes = Notes()
    batcher = OneLine(backend, limits=PLENTY, metrics=notes)
    batcher.submit(entries := make_entries("a", "b", "c c", lane=Lane.BULK))
    await outcomes(entries)
    assert [lane for lane, _ in notes.waits] == [Lane.BULK] * 3
    assert [seconds for _, seconds in notes.waits] == pytest.approx([0, 0, 0.01])
    assert [batch[:3] for batch in notes.batches] == [(Lane.BULK, 2, 6), (Lane.BULK, 1, 4)]
    assert [batch[3] for batch in notes.batches] == pytest.approx([0.01, 0.01])


@virtual_time
async def test_nobody_to_wait_for_is_nothing_to_do() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit([])
    await settle()
    assert backend.calls == []


# Returning callers


async def ask_on(batcher: OneLine, client: str, *, calls: int, pause: float) -> None:
    """Send one text after the other, each a pause after the answer to the last one."""
    for number in range(calls):
        batcher.submit(entries := make_entries(f"{client} {number}", client=client, exact=True))
        await entries[0].future
        await asyncio.sleep(pause)


@pytest.mark.parametrize(
    ("pause", "sizes"),
    [
        pytest.param(0.002, [1, *[3] * 9, 2], id="at once: they share every micro-batch"),
        pytest.param(0.004, [1, *[2, 1] * 9, 2], id="too late: the others do not wait for them"),
    ],
)
@virtual_time
async def test_clients_that_come_back_at_once_share_micro_batches(pause: float, sizes: list[int]) -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    clients = []
    for number in range(3):
        clients.append(asyncio.create_task(ask_on(batcher, f"unix:{number}", calls=10, pause=pause)))
        await settle()
    await asyncio.gather(*clients)
    assert list(map(len, backend.batches)) == sizes


@virtual_time
async def test_clients_that_come_back_within_a_part_of_a_long_micro_batch_are_waited_for() -> None:
    backend = ScriptedBackend(script=repeat(Step(seconds=0.04)))
    batcher = make_batcher(backend)
    clients = []
    for number in range(3):
        clients.append(asyncio.create_task(ask_on(batcher, f"unix:{number}", calls=12, pause=0.006)))
        await settle()
    await asyncio.gather(*clients)
    sizes = [len(batch) for batch in backend.batches]
    assert sizes[:2] == [1, 2]  # nothing is known of them yet
    assert sizes[3:11] == [3] * 8


@virtual_time
async def test_a_lone_client_is_never_waited_for() -> None:
    backend = ScriptedBackend()
    await ask_on(make_batcher(backend), "unix:1", calls=10, pause=0.001)
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [
        pytest.approx(0.011 * number) for number in range(10)
    ]


@virtual_time
async def test_a_pair_of_clients_is_gathered_and_not_for_longer_than_both_need() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    first = asyncio.create_task(ask_on(batcher, "unix:1", calls=4, pause=0.001))
    await settle()
    await ask_on(batcher, "unix:2", calls=3, pause=0.001)
    await first
    assert [len(batch) for batch in backend.batches] == [1, 2, 2, 2]
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [0, 0.011, 0.022, 0.033]


@virtual_time
async def test_nobody_is_gathered_behind_a_lone_text() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit(lone := make_entries("lone", exact=True))
    batcher.submit(bulk := make_entries("bulk", lane=Lane.BULK, exact=True))
    await outcomes([*lone, *bulk])
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [0, 0.01]


@virtual_time
async def test_a_full_micro_batch_waits_for_nobody() -> None:
    backend = ScriptedBackend(texts=4)
    batcher = make_batcher(backend)
    entries = [make_entry(f"text {number}", client=f"unix:{number}", exact=True) for number in range(12)]
    for entry in entries:
        batcher.submit([entry])
    await outcomes(entries)
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [0, 0.01, 0.02]


@virtual_time
async def test_bulk_texts_wait_for_nobody() -> None:
    backend = ScriptedBackend(texts=2)
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries(*"abc", lane=Lane.BULK, exact=True))
    await outcomes(entries)
    assert [round(call.began - backend.calls[0].began, 6) for call in backend.calls] == [0, 0.01]


# Tokens


@virtual_time
async def test_several_texts_that_are_not_counted_are_so_while_they_are_computed() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit(entries := [*make_entries("a", "b b"), make_entry(pack([1, 2, 3])), *make_entries("c", exact=True)])
    assert await outcomes(entries) == right("a", "b b", pack([1, 2, 3]), "c")
    assert backend.counted == [["a", "b b"]]
    assert backend.batches == [["a", "b b", pack([1, 2, 3]), "c"]]


@virtual_time
async def test_the_one_text_that_is_not_counted_has_the_rest_of_the_sum() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit(entries := [*make_entries("a a a a"), make_entry(pack([1, 2, 3])), *make_entries("c", exact=True)])
    assert await outcomes(entries) == right("a a a a", pack([1, 2, 3]), "c")
    assert backend.counted == []


@virtual_time
async def test_waiting_texts_are_counted_ahead_and_packed_tightly() -> None:
    backend = ScriptedBackend(texts=8, tokens=80)
    batcher = make_batcher(backend)
    texts = [f"{'long' * 10} {number}" for number in range(17)]  # a bound of 86 tokens or more each, but 4 in truth
    batcher.submit(entries := make_entries(*texts))
    assert await outcomes(entries) == right(*texts)
    assert [len(batch) for batch in backend.batches] == [1, 8, 8]
    assert backend.counted == [texts[1:]]  # one request


@virtual_time
async def test_what_comes_while_a_batch_is_in_flight_is_counted_too() -> None:
    backend = ScriptedBackend(texts=8, tokens=80)
    batcher = make_batcher(backend)
    batcher.submit(first := make_entries("first"))
    await asyncio.sleep(0.002)
    texts = [f"{'long' * 10} {number}" for number in range(8)]
    batcher.submit(entries := make_entries(*texts))
    await outcomes(entries)
    assert backend.batches == [["first"], texts]
    assert await outcomes(first) == right("first")


@virtual_time
async def test_texts_are_counted_ahead_again_and_again() -> None:
    backend = ScriptedBackend(texts=8, tokens=80)
    batcher = make_batcher(backend)
    for wave in range(3):
        batcher.submit(first := make_entries(f"first {wave}", exact=True))
        await asyncio.sleep(0.002)
        texts = [f"{'long' * 10} {wave} {number}" for number in range(8)]
        batcher.submit(entries := make_entries(*texts))
        await outcomes([*first, *entries])
        assert backend.batches[-1] == texts
        assert backend.counted[-1] == texts


@virtual_time
async def test_where_estimates_are_enough_nothing_is_counted_ahead() -> None:
    backend = ScriptedBackend(texts=8, tokens=80, by_estimate=True)
    batcher = make_batcher(backend)
    batcher.submit(first := make_entries(f"{'long' * 10} first"))  # of it, the tokens of a byte are learned
    await outcomes(first)
    texts = [f"{'long' * 10} {number}" for number in range(24)]
    batcher.submit(entries := make_entries(*texts))
    assert await outcomes(entries) == right(*texts)
    assert [len(batch) for batch in backend.batches] == [1, 8, 8, 8]
    assert backend.counted == backend.batches[1:]  # each micro-batch while it is computed, for the answers


@virtual_time
async def test_where_each_answer_tells_the_tokens_nothing_is_counted() -> None:
    backend = ScriptedBackend(texts=8, tokens=80, by_estimate=True, counted=True)
    batcher = make_batcher(backend)
    texts = [f"{'word ' * number}{number}" for number in range(16)]
    batcher.submit(entries := make_entries(*texts))
    assert await outcomes(entries) == right(*texts)
    assert [entry.tokens for entry in entries] == [tokens_of(text) for text in texts]
    assert backend.counted == []


@virtual_time
async def test_slow_counting_holds_nothing_up() -> None:
    backend = ScriptedBackend(tokens=80, counts=[Step(seconds=10.0)])
    batcher = make_batcher(backend)
    texts = [f"{'long' * 10} {number}" for number in range(5)]
    batcher.submit(entries := make_entries(*texts, lane=Lane.BULK))
    assert await outcomes(entries) == right(*texts)
    assert [len(batch) for batch in backend.batches] == [1] * 5
    assert backend.calls[-1].began - backend.calls[0].began == pytest.approx(0.04)


@pytest.mark.parametrize("outcome", ["unavailable", "invalid", "stray", "one too few"])
@virtual_time
async def test_no_text_fails_because_it_could_not_be_counted(outcome: Outcome) -> None:
    backend = ScriptedBackend(counts=[Step(outcome)] * 2)
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries("a", "b", "c"))
    with capture_logs() as logs:
        assert await outcomes(entries) == right("a", "b", "c")
    assert logs[0]["event"] == "texts could not be counted"


@virtual_time
async def test_a_backend_that_cannot_count_is_not_asked_over_and_over() -> None:
    backend = ScriptedBackend(tokens=80, script=[Step(seconds=1.0)], counts=[Step("unavailable", 0.0)] * 1000)
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries(*(f"{'long' * 10} {number}" for number in range(5))))
        await outcomes(entries)
    assert len(backend.counted) <= len(backend.calls)


@virtual_time
async def test_nothing_is_counted_when_nothing_waits_any_more() -> None:
    backend = ScriptedBackend(script=[Step("unavailable", seconds=-1)])
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries("a", "b"))
    await outcomes(entries)
    await settle()
    assert backend.counted == []


@virtual_time
async def test_counts_that_contradict_the_answer_are_a_fault_and_logged_without_texts() -> None:
    backend = ScriptedBackend(script=[Step("miscount")] * 3)
    batcher = make_batcher(backend)
    with capture_logs() as logs:
        batcher.submit(entries := make_entries("secret words", "secret too", exact=True))
        results = await outcomes(entries)
    assert [type(result) for result in results] == [BackendFaultError] * 2
    assert any(entry["event"] == "the engine counts tokens in two ways" for entry in logs)
    assert "secret" not in str(logs)
    assert "secret" not in str(results)


@virtual_time
async def test_a_count_ahead_that_was_wrong_is_found_out() -> None:
    backend = ScriptedBackend(counts=[Step("miscount", 0.001)])
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries("a", "b"))
        results = await outcomes(entries)
    assert isinstance(results[0], BackendFaultError)
    assert results[1:] == right("b")


# Failures


@pytest.mark.parametrize("outcome", ["unavailable", "interrupted"])
@virtual_time
async def test_a_dead_backend_fails_its_batch_and_the_others_go_on(outcome: Outcome) -> None:
    backend = ScriptedBackend(texts=2, script=[Step(outcome)])
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries(*"abcd"))
    results = await outcomes(entries)
    assert [type(result) for result in results[:2]] == [BackendUnavailableError] * 2
    assert results[0] is not results[1]  # each caller may raise its own error
    assert isinstance(results[0], RunedError)
    assert results[0].retry_after == 1.0
    assert results[2:] == right("c", "d")


@virtual_time
async def test_only_the_text_that_spoils_a_batch_fails() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries("a", "poison", "b", "c"))
        results = await outcomes(entries)
    assert isinstance(results.pop(1), BackendFaultError)
    assert results == right("a", "b", "c")
    assert backend.batches == [["a", "poison", "b", "c"], ["a"], ["poison"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("outcome", "error"), [("fault", BackendFaultError), ("invalid", InvalidTextError), ("too long", TextTooLongError)]
)
@virtual_time
async def test_whatever_spoils_a_batch_concerns_the_text_that_fails_alone(outcome: Outcome, error: type[RunedError]) -> None:
    backend = ScriptedBackend(script=[Step(outcome), Step(), Step(outcome), Step("unavailable")])
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries(*"abcd"))
        results = await outcomes(entries)
    assert type(results[1]) is error
    assert type(results[2]) is BackendUnavailableError
    assert [results[0], results[3]] == right("a", "d")


@virtual_time
async def test_nothing_is_tried_again_for_a_caller_that_went() -> None:
    backend = ScriptedBackend(script=[Step("fault")])
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries(*"abc"))
        await settle()
        entries[1].future.cancel()
        await outcomes(entries)
    assert backend.batches == [["a", "b", "c"], ["a"], ["c"]]


@pytest.mark.parametrize(("outcome", "error"), [("stray", RuntimeError), ("one too few", ValueError)])
@virtual_time
async def test_an_exception_that_nobody_foresaw_does_not_end_the_work(outcome: Outcome, error: type[Exception]) -> None:
    backend = ScriptedBackend(texts=2, script=[Step(outcome)])
    batcher = make_batcher(backend)
    with capture_logs() as logs:
        batcher.submit(entries := make_entries(*"abcd"))
        results = await outcomes(entries)
    assert [type(result) for result in results[:2]] == [error] * 2
    assert results[2:] == right("c", "d")
    assert logs[0]["event"] == "micro-batch failed unexpectedly"
    assert "a bug" not in str(logs)


@virtual_time
async def test_an_answer_of_another_length_is_no_texts_fault_though_none_was_counted() -> None:
    backend = ScriptedBackend(script=[Step("one too few")], counts=[Step("unavailable", 0.0)])
    batcher = make_batcher(backend)
    with capture_logs():
        batcher.submit(entries := make_entries("a", "b"))
        assert [type(result) for result in await outcomes(entries)] == [ValueError] * 2
    assert backend.batches == [["a", "b"]]


@virtual_time
async def test_each_caller_has_an_error_of_its_own_that_tells_the_same() -> None:
    backend = ScriptedBackend(script=[Step("unavailable")])
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries("a", "b"))
    one, other = await outcomes(entries)
    assert isinstance(one, RunedError)
    assert isinstance(other, RunedError)
    assert one.message == other.message == "it died"
    assert one.metadata == other.metadata == {}
    assert one.metadata is not other.metadata


@virtual_time
async def test_a_failed_micro_batch_is_logged_with_its_size_and_reason() -> None:
    backend = ScriptedBackend(script=[Step("fault"), Step(), Step(), Step("stray")])
    batcher = make_batcher(backend)
    with capture_logs() as logs:
        batcher.submit(entries := make_entries("a", "b"))
        await outcomes(entries)
        batcher.submit(entries := make_entries("c"))
        await outcomes(entries)
    assert logs[0] == {
        "event": "micro-batch failed, its texts are tried one by one",
        "log_level": "warning",
        "texts": 2,
        "reason": "BACKEND_FAULT",
    }
    assert logs[1].items() >= {"event": "micro-batch failed unexpectedly", "texts": 1}.items()
    assert "RuntimeError" in str(logs[1])


@virtual_time
async def test_interruption_and_shutdown_say_what_to_do() -> None:
    backend = ScriptedBackend(texts=1, script=[Step("interrupted"), Step(seconds=1.0)])
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries("a", "b"))
    await asyncio.sleep(0.5)
    await batcher.close()
    assert [str(error) for error in await outcomes(entries)] == [
        "the engine was interrupted; try again",
        "the daemon is shutting down; try again, and a new one will be started",
    ]


# Callers that go


@virtual_time
async def test_the_rest_of_an_abandoned_job_is_never_computed() -> None:
    backend = ScriptedBackend(texts=2)
    batcher = make_batcher(backend)
    batcher.submit(bulk := make_entries(*(f"{number}" for number in range(10_000)), lane=Lane.BULK, exact=True))
    await asyncio.sleep(0.015)
    for entry in bulk:
        entry.future.cancel()
    batcher.submit(other := make_entries("other", lane=Lane.BULK, client="unix:2"))
    assert await outcomes(other) == right("other")
    assert backend.batches == [["0", "1"], ["2", "3"], ["other"]]
    assert batcher.depth(Lane.BULK) == (0, 0)


@virtual_time
async def test_a_batch_in_flight_for_nobody_comes_to_its_end_before_the_next() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit(gone := make_entries("gone"))
    await settle()
    gone[0].future.cancel()
    batcher.submit(next_one := make_entries("next"))
    assert await outcomes(next_one) == right("next")
    assert [call.outcome for call in backend.calls] == ["answer", "answer"]
    assert backend.calls[1].began - backend.calls[0].began == pytest.approx(0.01)


@virtual_time
async def test_a_deadline_that_passes_in_the_queue_costs_the_engine_nothing() -> None:
    backend = ScriptedBackend(script=[Step(seconds=1.0)])
    batcher = make_batcher(backend)
    batcher.submit(first := make_entries("first"))
    await settle()
    batcher.submit(late := make_entries("late"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await late[0].future
    await outcomes(first)
    await settle()
    assert backend.batches == [["first"]]


# Room


@virtual_time
async def test_a_full_queue_refuses_at_once_and_takes_all_or_nothing() -> None:
    backend = ScriptedBackend(texts=1)
    batcher = make_batcher(backend, QueueLimits(texts=4, bytes=1000))
    batcher.submit(accepted := make_entries(*"abc", exact=True))
    with pytest.raises(QueueFullError) as refusal:
        batcher.submit(refused := make_entries(*"de"))
    assert batcher.depth(Lane.INTERACTIVE) == (3, 3)
    assert refusal.value.metadata == {"limit_texts": "4", "limit_bytes": "1000"}
    for part in ("3 texts of 3 bytes wait", "RUNED_QUEUE_TEXTS", "RUNED_QUEUE_BYTES", "4 texts", "1,000 bytes", "try again"):
        assert part in refusal.value.message
    assert await outcomes(accepted) == right("a", "b", "c")
    assert not any(entry.future.done() for entry in refused)
    batcher.submit(refused)
    assert await outcomes(refused) == right("d", "e")


@virtual_time
async def test_a_full_queue_tells_when_there_will_be_room() -> None:
    backend = ScriptedBackend(texts=1)
    batcher = make_batcher(backend, QueueLimits(texts=100, bytes=100))
    with pytest.raises(QueueFullError) as unmeasured:
        submit_until_full(batcher)
    assert unmeasured.value.retry_after == 1.0
    await asyncio.sleep(0.505)  # 50 texts of a byte at 100 texts a second
    assert batcher.depth(Lane.INTERACTIVE) == (49, 49)
    with pytest.raises(QueueFullError) as measured:
        batcher.submit(make_entries("x" * 91))
    assert measured.value.retry_after == pytest.approx(0.4)
    with pytest.raises(QueueFullError) as soon:
        batcher.submit(make_entries("x" * 52))
    assert soon.value.retry_after == MIN_RETRY_AFTER
    await batcher.close()


@virtual_time
async def test_nobody_is_told_to_wait_for_ever() -> None:
    backend = ScriptedBackend(texts=1, script=[Step(seconds=100.0)] * 9)
    batcher = make_batcher(backend, QueueLimits(texts=3, bytes=100))
    batcher.submit(make_entries("a", "b"))
    await asyncio.sleep(101)
    batcher.submit(make_entries("c", "d"))
    with pytest.raises(QueueFullError) as refusal:
        batcher.submit(make_entries("e", "f", "g"))
    assert refusal.value.retry_after == MAX_RETRY_AFTER
    await batcher.close()


@virtual_time
async def test_the_time_of_a_start_is_not_taken_for_the_speed() -> None:
    backend = ScriptedBackend(texts=1, status=BackendStatus.STOPPED, script=[Step(seconds=60.0)])
    batcher = make_batcher(backend, QueueLimits(texts=2, bytes=100))
    batcher.submit(entries := make_entries("a"))
    await outcomes(entries)
    batcher.submit(make_entries("a", "b"))
    with pytest.raises(QueueFullError) as refusal:
        batcher.submit(make_entries("c"))
    assert refusal.value.retry_after == 1.0
    await batcher.close()


def submit_until_full(batcher: OneLine) -> None:
    while True:
        batcher.submit(make_entries("x", exact=True))


@pytest.mark.parametrize("texts", [["a"] * 5, ["x" * 101]])
@virtual_time
async def test_what_never_has_room_is_not_told_to_come_again(texts: list[str]) -> None:
    batcher = make_batcher(ScriptedBackend(), QueueLimits(texts=4, bytes=100))
    with pytest.raises(BatchTooLargeError, match=r"RUNED_QUEUE_TEXTS.*send less") as refusal:
        batcher.submit(make_entries(*texts))
    assert refusal.value.retry_after is None
    assert refusal.value.metadata["limit"] == "4"
    assert refusal.value.metadata["limit_bytes"] == "100"
    with pytest.raises(BatchTooLargeError):
        await batcher.room(texts=len(texts), size=sum(map(len, texts)))


@virtual_time
async def test_exactly_as_much_as_may_wait_is_taken_and_what_never_fits_is_told_in_numbers() -> None:
    batcher = make_batcher(ScriptedBackend(), QueueLimits(texts=4, bytes=100))
    batcher.submit(entries := make_entries("x" * 25, "x" * 25, "x" * 25, "x" * 25))
    await outcomes(entries)
    with pytest.raises(BatchTooLargeError) as refusal:
        batcher.submit(make_entries("x" * 100, "y"))
    assert refusal.value.message == (
        "2 texts of 101 bytes can never wait at once: the limits are 4 texts (RUNED_QUEUE_TEXTS) and 100 bytes "
        "(RUNED_QUEUE_BYTES); send less at once, or raise these settings of the daemon"
    )
    assert refusal.value.metadata == {"texts": "2", "limit": "4", "bytes": "101", "limit_bytes": "100"}


@virtual_time
async def test_bulk_jobs_that_fill_their_part_do_not_shut_interactive_texts_out() -> None:
    backend = ScriptedBackend(texts=1)
    batcher = make_batcher(backend, QueueLimits(texts=8, bytes=1000))
    batcher.submit(bulk := make_entries(*"abcdefg", lane=Lane.BULK))
    with pytest.raises(QueueFullError, match="limits for bulk texts are 7 texts"):
        batcher.submit(make_entries("h", lane=Lane.BULK))
    batcher.submit(urgent := make_entries("now"))
    assert await outcomes(urgent) == right("now")
    await outcomes(bulk)


@virtual_time
async def test_those_who_wait_for_room_are_let_in_in_turn_and_never_too_many() -> None:
    backend = ScriptedBackend(texts=1)
    batcher = make_batcher(backend, QueueLimits(texts=4, bytes=1000))
    order: list[int] = []

    async def stream(number: int, texts: int) -> None:
        await batcher.room(texts=texts, size=texts)
        order.append(number)
        entries = [make_entry("x", lane=Lane.BULK, client=f"unix:{number}", exact=True) for _ in range(texts)]
        batcher.submit(entries)  # never refused
        assert await outcomes(entries) == right("x") * texts

    async with asyncio.TaskGroup() as group:
        for number, texts in enumerate([3, 1, 4, 1, 2, 4, 1, 3]):
            group.create_task(stream(number, texts))
    assert order == list(range(8))


@virtual_time
@pytest.mark.parametrize("lane", Lane)
async def test_small_submissions_do_not_keep_a_larger_one_waiting_for_ever(lane: Lane) -> None:
    """A stream needs room for many texts at once. Clients of single texts took each place that became free."""
    batcher = make_batcher(ScriptedBackend(texts=1), QueueLimits(texts=16, bytes=1000))
    refused = taken = 0

    async def flood() -> None:
        nonlocal refused, taken
        while True:
            try:
                batcher.submit([make_entry("x", lane=lane, client="unix:1", exact=True)])
                taken += 1
            except QueueFullError:
                refused += 1
                await asyncio.sleep(0.001)

    flooding = asyncio.create_task(flood())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await batcher.room(texts=14, size=14)
    entries = [make_entry("y", lane=Lane.BULK, client="unix:2", exact=True) for _ in range(14)]
    batcher.submit(entries)
    before = taken
    async with asyncio.timeout(10):
        assert await outcomes(entries) == right("y") * 14
    flooding.cancel()
    assert refused
    assert taken > before, "the others go on beside it"
    await batcher.close()


@virtual_time
async def test_one_who_gives_up_waiting_for_room_lets_the_next_in() -> None:
    backend = ScriptedBackend(texts=1, script=[Step(seconds=1.0)] * 2)
    batcher = make_batcher(backend, QueueLimits(texts=2, bytes=1000))
    batcher.submit(entries := make_entries("a", "b", lane=Lane.BULK))
    impatient = asyncio.create_task(batcher.room(texts=2, size=2))
    patient = asyncio.create_task(batcher.room(texts=1, size=1))
    await asyncio.sleep(0.5)
    assert not patient.done()
    impatient.cancel()
    await asyncio.sleep(0.1)
    assert patient.done()
    await outcomes(entries)


# Lanes and the end


@virtual_time
async def test_a_promoted_text_overtakes_the_other_bulk_ones() -> None:
    backend = ScriptedBackend(texts=1)
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries(*"abcd", lane=Lane.BULK))
    await settle()
    batcher.promote(entries[3])
    batcher.promote(entries[0])  # in flight: it cannot be stopped
    assert batcher.depth(Lane.INTERACTIVE) == (1, 1)
    await outcomes(entries)
    assert backend.batches == [["a"], ["d"], ["b"], ["c"]]


@virtual_time
async def test_close_fails_what_waits_and_what_is_in_flight_and_takes_nothing_new() -> None:
    backend = ScriptedBackend(texts=2, script=[Step(seconds=1.0)])
    batcher = make_batcher(backend, QueueLimits(texts=4, bytes=1000))
    batcher.submit(entries := make_entries(*"abcd", lane=Lane.BULK))
    waiting = asyncio.create_task(batcher.room(texts=3, size=3))
    await settle()
    entries[3].future.cancel()
    await batcher.close()
    results = await outcomes(entries)
    assert [type(result) for result in results] == [ShuttingDownError] * 3 + [asyncio.CancelledError]
    assert [call.outcome for call in backend.calls] == ["broken off"]
    with pytest.raises(ShuttingDownError):
        await waiting
    with pytest.raises(ShuttingDownError):
        batcher.submit(make_entries("late"))
    with pytest.raises(ShuttingDownError):
        await batcher.room(texts=1, size=1)
    await batcher.close()
    assert len(asyncio.all_tasks()) == 1


@virtual_time
async def test_close_before_the_first_batch_was_taken() -> None:
    backend = ScriptedBackend()
    batcher = make_batcher(backend)
    batcher.submit(entries := make_entries("a"))
    await batcher.close()
    assert [type(result) for result in await outcomes(entries)] == [ShuttingDownError]
    assert backend.calls == []


@virtual_time
async def test_bulk_micro_batches_are_small_while_interactive_texts_come_and_full_otherwise() -> None:
    backend = ScriptedBackend(texts=8, tokens=80, script=[Step(seconds=0.08), Step(seconds=0.01), *[Step(seconds=0.02)] * 4])
    batcher = make_batcher(backend)

    async def sizes_of_bulk() -> list[int]:
        sent = len(backend.batches)
        batcher.submit(entries := make_entries(*(f"{number}" for number in range(8)), lane=Lane.BULK, exact=True))
        await outcomes(entries)
        return [len(batch) for batch in backend.batches[sent:]]

    assert await sizes_of_bulk() == [8]  # 24 tokens in 80 ms
    batcher.submit(lone := make_entries("somebody"))  # 10 ms alone
    await outcomes(lone)
    assert await sizes_of_bulk() == [2, 2, 2, 2]  # 7 tokens, in 25 ms
    await asyncio.sleep(10)
    assert await sizes_of_bulk() == [8]
