"""Token counts of a micro-batch: an unknown count follows from the sum, and a contradiction is a fault."""

from __future__ import annotations

import pytest

from runed.errors import BackendFaultError
from runed.scheduling.counting import count, settle_tokens
from tests.scheduling.virtual import ScriptedBackend, Step, make_entry, virtual_time
from tests.support import capture_logs


@pytest.mark.parametrize("rest", [1, 5])
@virtual_time
async def test_the_one_that_is_not_known_has_the_rest(rest: int) -> None:
    known, unknown = make_entry("a a", exact=True), make_entry("b")
    settle_tokens([known, unknown], 4 + rest)
    assert (unknown.tokens, unknown.exact) == (rest, True)
    assert (known.tokens, known.exact) == (4, True)


@virtual_time
async def test_all_that_are_not_known_are_taken_from_the_answer() -> None:
    batch = [make_entry("a a", exact=True), make_entry("b"), make_entry("c c c")]
    settle_tokens(batch, 12, [4, 3, 5])
    assert [(entry.tokens, entry.exact) for entry in batch] == [(4, True), (3, True), (5, True)]
    with pytest.raises(BackendFaultError, match="read 13 tokens and counted 12 before"):
        settle_tokens(batch, 13, [5, 3, 5])


@virtual_time
async def test_a_sum_that_leaves_nothing_or_is_not_the_sum_is_a_fault_and_logged() -> None:
    known, unknown = make_entry("a a", exact=True), make_entry("b")
    for batch, total in (([known, unknown], 4), ([known, known], 9), ([known, known], 7)):
        with capture_logs() as logs, pytest.raises(BackendFaultError) as caught:
            settle_tokens(batch, total)
        before = sum(entry.tokens for entry in batch if entry.exact)
        assert caught.value.message == f"the engine read {total} tokens and counted {before} before"
        assert logs == [
            {
                "event": "the engine counts tokens in two ways",
                "log_level": "warning",
                "texts": 2,
                "tokens": total,
                "known": before,
            }
        ]
    settle_tokens([known, known], 8)


@virtual_time
async def test_several_that_are_not_known_are_a_fault() -> None:
    with pytest.raises(BackendFaultError, match=r"^the tokens of 2 texts could not be counted$"):
        settle_tokens([make_entry("a"), make_entry("b"), make_entry("c", exact=True)], 9)


@virtual_time
async def test_counting_replaces_bounds_and_after_a_failure_they_stay() -> None:
    backend = ScriptedBackend(counts=[Step("unavailable"), Step()])
    entries = [make_entry("a"), make_entry("b b")]
    with capture_logs() as logs:
        assert not await count(entries, backend)
    assert [(entry.tokens, entry.exact) for entry in entries] == [(4, False), (8, False)]
    assert logs[0].items() >= {"event": "texts could not be counted", "texts": 2}.items()
    assert "BackendUnavailableError" in str(logs)
    assert await count(entries, backend)
    assert [(entry.tokens, entry.exact) for entry in entries] == [(3, True), (4, True)]
