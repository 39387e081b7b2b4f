"""The queue has two lanes with a guaranteed share, is fair to clients, keeps each client's order, and has bounds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runed.backends.base import BatchLimits, TextInput
from runed.domain.requests import Lane
from runed.scheduling.queue import BULK_SHARE, COUNT_AHEAD, FairQueue, QueueEntry, QueueLimits
from tests.scheduling.virtual import make_entry, settle, virtual_time

LIMITS = BatchLimits(texts=4, tokens=100)
PLENTY = QueueLimits(texts=100_000, bytes=10**9)


def take(queue: FairQueue, limits: BatchLimits = LIMITS) -> list[QueueEntry]:
    batch = queue.take({"": limits})
    if batch:
        queue.settle(batch)
    return batch


def names(entries: list[QueueEntry]) -> list[TextInput]:
    return [entry.input for entry in entries]


def entry(
    name: str, tokens: int = 10, *, client: str = "unix:1", lane: Lane = Lane.INTERACTIVE, exact: bool = True
) -> QueueEntry:
    return make_entry(name, tokens=tokens, client=client, lane=lane, exact=exact)


@virtual_time
async def test_one_client_is_served_first_in_first_out() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"{number}", tokens=1 + 37 * number % 90) for number in range(20)])
    taken: list[TextInput] = []
    while batch := take(queue):
        taken += names(batch)
    assert taken == [f"{number}" for number in range(20)]


@virtual_time
async def test_a_batch_is_filled_to_its_limits_and_not_beyond() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(name, 40) for name in "abcde"])
    assert [names(take(queue)) for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], []]
    queue.push([entry(name, 1) for name in "abcde"])
    assert [names(take(queue)) for _ in range(2)] == [["a", "b", "c", "d"], ["e"]]
    queue.push([entry("a", 50), entry("b", 50), entry("c", 1)])
    assert names(take(queue)) == ["a", "b"]


@virtual_time
async def test_a_text_larger_than_a_batch_goes_alone() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("small", 1), entry("large", 500), entry("last", 1)])
    assert [names(take(queue)) for _ in range(3)] == [["small"], ["large"], ["last"]]


@virtual_time
async def test_a_newcomer_does_not_wait_behind_the_many_texts_of_another() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"many {number}", 30) for number in range(50)])
    take(queue)
    queue.push([entry("one", 30, client="unix:2")])
    assert "one" in names(take(queue))


@virtual_time
async def test_a_client_that_pauses_saves_up_no_claim() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("early", client="unix:2"), *(entry(f"many {number}", 50) for number in range(50))])
    for _ in range(10):
        take(queue)
    queue.push([entry(f"late {number}", 50, client="unix:2") for number in range(20)])
    taken = Counter(str(name).split(maxsplit=1)[0] for _ in range(10) for name in names(take(queue)))
    assert taken["late"] <= taken["many"] + 2


@virtual_time
async def test_a_client_cannot_jump_the_queue_by_coming_back_after_each_text() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"steady {number}", 60) for number in range(50)])
    queue.push([entry("hasty", 60, client="unix:2")])
    taken: list[str] = []
    for _ in range(20):
        for name in names(take(queue)):
            taken.append(str(name).split(maxsplit=1)[0])
            if taken[-1] == "hasty":
                queue.push([entry("hasty", 60, client="unix:2")])
    assert abs(taken.count("hasty") - taken.count("steady")) <= 1


@virtual_time
async def test_a_lone_client_owes_nothing_for_the_time_in_which_nobody_else_waited() -> None:
    queue = FairQueue(PLENTY)
    for _ in range(20):
        queue.push([entry("before", 90)])
        take(queue)
    # The client's last text is in flight and nothing waits. Then both clients come at once.
    queue.push([entry("before", 90)])
    flight = queue.take({"": LIMITS})
    queue.push([entry(f"new {number}", 90, client="unix:2") for number in range(10)])
    queue.push([entry(f"old {number}", 90) for number in range(10)])
    queue.settle(flight)
    taken = Counter(str(name).split(maxsplit=1)[0] for _ in range(10) for name in names(take(queue)))
    assert taken["new"] <= taken["old"] + 2


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.lists(st.integers(1, 60), min_size=30, max_size=30), min_size=2, max_size=4),
    limits=st.builds(BatchLimits, st.integers(1, 8), st.sampled_from([30, 100, 400])),
)
@virtual_time
async def test_clients_that_wait_share_the_tokens_equally(costs: list[list[int]], limits: BatchLimits) -> None:
    queue = FairQueue(PLENTY)
    left: Counter[str] = Counter()
    for number, tokens in enumerate(costs):
        client = f"unix:{number}"
        queue.push([entry("text", cost, client=client) for cost in tokens])
        left[client] = len(tokens)
    served: Counter[str] = Counter(dict.fromkeys(left, 0))
    while all(left.values()):
        for done in take(queue, limits):
            served[done.client] += done.tokens
            left[done.client] -= 1
            if not left[done.client]:
                break
        # The bound of start-time fair queueing: two clients differ by at most one text of each.
        assert max(served.values()) - min(served.values()) <= 60 + 60


@virtual_time
async def test_a_client_is_charged_what_its_texts_cost_and_not_their_bounds() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"counted {number}", 30) for number in range(300)])
    queue.push([entry(f"bounded {number}", 90, client="unix:2", exact=False) for number in range(300)])
    served: Counter[str] = Counter()
    for _ in range(100):
        batch = queue.take({"": LIMITS})
        for done in batch:
            if not done.exact:
                done.tokens, done.exact = 30, True
            served[done.client] += done.tokens
        queue.settle(batch)
    assert abs(served["unix:1"] - served["unix:2"]) <= 120


@virtual_time
async def test_interactive_texts_go_first() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"bulk {number}", 50, lane=Lane.BULK) for number in range(10)])
    take(queue)
    queue.push([entry("now", client="unix:2")])
    assert names(take(queue)) == ["now"]


@virtual_time
async def test_a_batch_never_mixes_the_lanes() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("bulk", 1, lane=Lane.BULK)])
    queue.push([entry("now", 1)])
    assert [names(take(queue)) for _ in range(2)] == [["now"], ["bulk"]]


@pytest.mark.parametrize(("interactive", "bulk"), [(10, 10), (5, 90), (90, 5), (10, 300), (300, 10)])
@virtual_time
async def test_bulk_has_its_share_while_both_lanes_wait(interactive: int, bulk: int) -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("interactive", interactive) for _ in range(1000)])
    queue.push([entry("bulk", bulk, lane=Lane.BULK) for _ in range(1000)])
    served: Counter[Lane] = Counter()
    for _ in range(200):
        for done in take(queue):
            served[done.lane] += done.tokens
    assert served[Lane.BULK] / served.total() == pytest.approx(BULK_SHARE, rel=0.1)


@virtual_time
@pytest.mark.parametrize("lane", list(Lane))
async def test_long_texts_that_go_alone_do_not_starve_short_ones(lane: Lane) -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(f"long {number}", 2000, client="unix:1", lane=lane) for number in range(5)])
    queue.push([entry(f"short {number}", 10, client="unix:2") for number in range(100)])
    taken: list[str] = []
    while batch := take(queue):
        assert len(batch) == 1 or all(each.tokens == 10 for each in batch)
        taken += [str(each.input) for each in batch]
    assert sum(name.startswith("long") for name in taken[: taken.index("short 99")]) <= 1


@virtual_time
async def test_bulk_earns_nothing_while_it_does_not_wait() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("interactive", 50) for _ in range(1000)])
    for _ in range(300):
        take(queue)
    queue.push([entry("bulk", 50, lane=Lane.BULK) for _ in range(100)])
    assert [take(queue)[0].lane for _ in range(4)] == [Lane.INTERACTIVE] * 4


@virtual_time
async def test_a_claim_that_bulk_has_earned_is_lost_when_nothing_waits_any_more() -> None:
    queue = FairQueue(PLENTY)
    dear = entry("dear", 10_000, lane=Lane.BULK)
    queue.push([dear, *(entry("interactive", 50) for _ in range(1000))])
    for _ in range(50):
        take(queue)
    dear.future.cancel()
    take(queue)
    queue.push([entry("cheap", 50, lane=Lane.BULK)])
    assert [take(queue)[0].lane for _ in range(2)] == [Lane.INTERACTIVE] * 2


@virtual_time
async def test_an_abandoned_text_is_never_given_out() -> None:
    queue = FairQueue(PLENTY)
    entries = [entry(name) for name in "abcdef"]
    queue.push(entries)
    for index in (0, 3, 5):
        entries[index].future.cancel()
    # This works at once, before the next turn of the event loop.
    assert names(take(queue)) == ["b", "c", "e"]
    assert take(queue) == []


@virtual_time
async def test_an_abandoned_job_of_many_texts_frees_its_room_at_once() -> None:
    queue = FairQueue(QueueLimits(texts=20_000, bytes=10**9))
    bulk = [entry(f"{number}", lane=Lane.BULK) for number in range(10_000)]
    other = entry("other", client="unix:2", lane=Lane.BULK)
    queue.push([*bulk, other])
    for abandoned in bulk:
        abandoned.future.cancel()
    await settle()
    assert queue.depth(Lane.BULK) == (1, len("other"))
    assert queue.vacated.is_set()
    assert names(take(queue)) == ["other"]


@virtual_time
async def test_a_text_leaves_its_place_once_whatever_happens_to_its_future_later() -> None:
    queue = FairQueue(PLENTY)
    first, second = entry("a"), entry("b")
    queue.push([first, second])
    batch = queue.take({"": BatchLimits(1, 100)})
    first.future.cancel()
    await settle()
    assert queue.depth(Lane.INTERACTIVE) == (1, 1)
    queue.settle(batch)
    second.future.cancel()
    await settle()
    assert queue.depth(Lane.INTERACTIVE) == (0, 0)


@virtual_time
async def test_promotion_moves_a_text_behind_those_of_its_client() -> None:
    queue = FairQueue(PLENTY)
    bulk = [entry(f"bulk {number}", 90, lane=Lane.BULK) for number in range(3)]
    queue.push(bulk)
    queue.push([entry("now", 90)])
    queue.promote(bulk[2])
    queue.promote(bulk[2])
    assert queue.depth(Lane.INTERACTIVE)[0] == 2
    assert queue.depth(Lane.BULK)[0] == 2
    assert [names(take(queue))[0] for _ in range(4)] == ["now", "bulk 2", "bulk 0", "bulk 1"]


@virtual_time
async def test_promotion_of_what_was_taken_or_abandoned_does_nothing() -> None:
    queue = FairQueue(PLENTY)
    taken, abandoned = entry("taken", lane=Lane.BULK), entry("abandoned", lane=Lane.BULK)
    queue.push([taken])
    flight = queue.take({"": LIMITS})
    queue.push([abandoned])
    abandoned.future.cancel()
    await settle()
    queue.promote(taken)
    queue.promote(abandoned)
    queue.settle(flight)
    assert taken.lane is Lane.BULK
    assert [queue.depth(lane) for lane in Lane] == [(0, 0), (0, 0)]


@virtual_time
async def test_the_room_is_bounded_by_texts_and_by_bytes() -> None:
    queue = FairQueue(QueueLimits(texts=10, bytes=100))
    queue.push([entry("x" * 20), entry("y" * 20)])
    assert queue.excess(Lane.INTERACTIVE, texts=8, size=60) == 0
    assert queue.excess(Lane.INTERACTIVE, texts=9, size=60) == 1 / 2
    assert queue.excess(Lane.INTERACTIVE, texts=8, size=70) == 10 / 40


@virtual_time
async def test_bulk_leaves_room_for_interactive_texts() -> None:
    queue = FairQueue(QueueLimits(texts=16, bytes=16_000))
    assert queue.limits(Lane.BULK) == QueueLimits(14, 14_000)
    assert queue.limits(Lane.INTERACTIVE) == QueueLimits(16, 16_000)
    queue.push([entry(f"{number}", lane=Lane.BULK) for number in range(14)])
    assert queue.excess(Lane.BULK, texts=1, size=1) > 0
    assert queue.excess(Lane.INTERACTIVE, texts=2, size=2) == 0
    queue.push([entry("now"), entry("too")])
    assert queue.excess(Lane.INTERACTIVE, texts=1, size=1) > 0
    take(queue)  # the interactive ones
    take(queue)
    assert queue.excess(Lane.BULK, texts=4, size=4) == 0


@virtual_time
async def test_texts_are_counted_only_where_bounds_keep_a_batch_small() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry(name, 25, exact=False) for name in "abcdefgh"])
    assert queue.uncounted({"": LIMITS}) == []  # four of them fill a batch
    queue.push([entry(name, 26, exact=False, client="unix:2") for name in "ABCD"])
    assert sorted(map(str, names(queue.uncounted({"": LIMITS})))) == sorted("abcdefghABCD")
    for counted in queue.uncounted({"": LIMITS}):
        counted.exact = True
    assert queue.uncounted({"": LIMITS}) == []  # waiting would gain nothing


@virtual_time
async def test_what_comes_next_is_counted_first_and_not_all_at_once() -> None:
    queue = FairQueue(PLENTY)
    bulk = [entry(f"{number}", 90, exact=False, lane=Lane.BULK) for number in range(1000)]
    bulk[0].exact = True
    queue.push(bulk)
    assert queue.uncounted({"": LIMITS}) == bulk[1 : 4 + COUNT_AHEAD]
    interactive = [entry(f"{number}", 90, exact=False) for number in range(2)]
    queue.push(interactive)
    assert queue.uncounted({"": LIMITS}) == interactive


@virtual_time
async def test_drain_gives_what_somebody_waits_for() -> None:
    queue = FairQueue(PLENTY)
    entries = [entry("a"), entry("b", lane=Lane.BULK), entry("c")]
    queue.push(entries)
    entries[2].future.cancel()
    assert names(queue.drain("")) == ["a", "b"]
    await settle()
    assert [queue.depth(lane) for lane in Lane] == [(0, 0), (0, 0)]
    assert take(queue) == []


@virtual_time
async def test_clients_that_are_gone_are_forgotten() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("steady", 10, client="steady") for _ in range(800)])
    for number in range(400):
        queue.push([entry("passing", 10, client=f"unix:{number}")])
        take(queue)
    assert len(queue._lanes[Lane.INTERACTIVE]._flows) < 10


@virtual_time
async def test_ties_are_broken_by_arrival() -> None:
    queue = FairQueue(PLENTY)
    for number in range(8):
        queue.push([entry(f"{number}", client=f"unix:{8 - number}")])
    taken = [int(str(name)) for _ in range(2) for name in names(take(queue))]
    assert all(one < other for one, other in pairwise(taken))


@virtual_time
async def test_a_client_that_comes_back_while_another_is_computed_saves_up_no_claim_either() -> None:
    queue = FairQueue(PLENTY)
    one = BatchLimits(1, 100)
    queue.push([entry("early", 50, client="unix:2"), *(entry(f"many {number}", 90) for number in range(5))])
    assert names(take(queue, one)) == ["early"]
    assert names(take(queue, one)) == ["many 0"]
    flight = queue.take({"": one})
    queue.push([entry("late 0", 90, client="unix:2")])
    queue.settle(flight)
    assert names(take(queue, one)) == ["late 0"]
    queue.push([entry("late 1", 90, client="unix:2")])
    assert [names(take(queue, one)) for _ in range(3)] == [["many 2"], ["late 1"], ["many 3"]]


@virtual_time
async def test_bulk_has_its_turn_as_soon_as_it_can_pay() -> None:
    queue = FairQueue(PLENTY)
    queue.push([entry("interactive", 80) for _ in range(4)])
    queue.push([entry("bulk", 20, lane=Lane.BULK) for _ in range(4)])
    turns = [take(queue, BatchLimits(1, 100))[0].lane for _ in range(4)]
    assert turns == [Lane.INTERACTIVE, Lane.BULK, Lane.INTERACTIVE, Lane.BULK]


@virtual_time
async def test_the_room_beside_one_small_text_is_told_exactly() -> None:
    queue = FairQueue(QueueLimits(texts=10, bytes=100))
    queue.push([entry("x")])
    assert queue.excess(Lane.INTERACTIVE, texts=11, size=1) == 2
    assert queue.excess(Lane.INTERACTIVE, texts=1, size=102) == 3


@virtual_time
async def test_the_bytes_of_both_lanes_count_against_the_room() -> None:
    queue = FairQueue(QueueLimits(texts=10, bytes=100))
    queue.push([entry("b" * 40, lane=Lane.BULK), entry("i" * 30)])
    assert queue.excess(Lane.INTERACTIVE, texts=1, size=30) == 0
    assert queue.excess(Lane.INTERACTIVE, texts=1, size=37) == 7 / 70


@virtual_time
async def test_bulk_begins_to_earn_from_nothing() -> None:
    queue = FairQueue(PLENTY)
    one = BatchLimits(1, 100)
    queue.push([entry("interactive", 76) for _ in range(4)])
    take(queue, one)
    queue.push([entry("bulk", 20, lane=Lane.BULK)])
    # A turn of 76 tokens earns 19, and it needs 20.
    assert [take(queue, one)[0].lane for _ in range(3)] == [Lane.INTERACTIVE, Lane.INTERACTIVE, Lane.BULK]
