"""The measured speed, and the waiting times that follow from it."""

from __future__ import annotations

import asyncio

import pytest

from runed.backends.base import BatchLimits
from runed.domain.requests import Lane
from runed.scheduling.pace import MAX_RETRY_AFTER, MIN_RETRY_AFTER, Pace, Returns
from runed.scheduling.queue import QueueEntry
from tests.scheduling.virtual import make_entry, virtual_time

LIMITS = BatchLimits(texts=8, tokens=80)


def batch_of(*texts: str, lane: Lane = Lane.INTERACTIVE) -> list[QueueEntry]:
    return [make_entry(text, lane=lane) for text in texts]


@virtual_time
async def test_time_to_wait_follows_from_the_bytes_and_the_smoothed_speed() -> None:
    pace = Pace()
    assert pace.retry_after(1e9) == 1.0  # nothing was measured yet
    pace.learn(batch_of("x" * 6, "x" * 4), 9, 1.0)
    assert pace.retry_after(20) == pytest.approx(2.0)
    pace.learn(batch_of("x" * 10), 9, 2.0)
    assert pace.retry_after(20) == pytest.approx(2.4)  # 0.8 of the old speed and 0.2 of the new one
    assert pace.retry_after(0.001) == MIN_RETRY_AFTER
    assert pace.retry_after(1e9) == MAX_RETRY_AFTER


@virtual_time
async def test_bulk_batches_are_small_for_five_seconds_after_an_interactive_one() -> None:
    pace = Pace()
    pace.learn(batch_of("bulk", lane=Lane.BULK), 100, 1.0)
    assert pace.bulk_limits(LIMITS) is LIMITS
    pace.learn(batch_of("lone"), 3, 0.1)
    assert pace.bulk_limits(LIMITS) == BatchLimits(texts=8, tokens=25)  # 2.5 times the time of the lone text
    await asyncio.sleep(4.999)
    assert pace.bulk_limits(LIMITS).tokens == 25
    await asyncio.sleep(5.0 - (asyncio.get_running_loop().time() - 1000.0))
    assert pace.bulk_limits(LIMITS) is LIMITS


@virtual_time
async def test_both_speeds_are_smoothed_and_a_batch_of_several_is_no_lone_text() -> None:
    pace = Pace()
    for seconds in (1.0, 2.0):  # 100 and 50 tokens a second
        pace.learn(batch_of("bulk", lane=Lane.BULK), 100, seconds)
    pace.learn(batch_of("one", "two"), 6, 50.0)
    assert pace.bulk_limits(LIMITS) is LIMITS
    for seconds in (0.1, 0.2):
        pace.learn(batch_of("lone"), 3, seconds)
    assert pace.bulk_limits(LIMITS).tokens == int(2.5 * 0.12 / 0.012)


@pytest.mark.parametrize(("seconds", "tokens"), [(1e-6, 1), (100.0, 80)])
@virtual_time
async def test_a_bulk_batch_holds_one_token_at_least_and_what_the_backend_takes_at_most(seconds: float, tokens: int) -> None:
    pace = Pace()
    pace.learn(batch_of("bulk", lane=Lane.BULK), 100, 1.0)
    pace.learn(batch_of("lone"), 3, seconds)
    assert pace.bulk_limits(LIMITS) == BatchLimits(texts=8, tokens=tokens)


@virtual_time
async def test_tokens_are_estimated_by_the_bytes_of_earlier_texts_and_never_above_the_bound() -> None:
    pace = Pace()

    def estimate(*, exact: bool = False) -> int:
        [text] = batch_of("x" * 40)
        text.exact = exact
        pace.estimate_tokens([text])
        return text.tokens

    bound = estimate()
    pace.learn(batch_of("x" * 60, "x" * 40), 20, 1.0)
    assert bound > 8
    assert estimate() == 8
    assert estimate(exact=True) == bound
    pace.learn(batch_of("x" * 10), 10_000, 1.0)
    assert estimate() == bound


def test_patience_follows_from_the_time_in_which_callers_come_back() -> None:
    returns = Returns()
    assert returns.patience(0.1) == 0.003  # nothing is known of them
    returns.answered(4, 10.0)
    returns.came(3, 10.005)
    assert returns.patience(0.1) == 0.003
    returns.came(1, 10.010)
    assert returns.patience(0.1) == pytest.approx(0.015)
    assert returns.patience(0.039) == 0.003  # that would be more than a quarter of the micro-batch
    returns.came(9, 10.5)  # of somebody else
    assert returns.patience(0.1) == pytest.approx(0.015)


def test_callers_that_do_not_come_back_are_soon_not_waited_for() -> None:
    returns = Returns()
    returns.answered(2, 0.0)
    returns.came(2, 0.010)
    for number in range(1, 4):
        assert returns.patience(0.1) > 0.003
        returns.answered(2, number * 0.06)
    assert returns.patience(0.1) == 0.003
