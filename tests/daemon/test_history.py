"""The memory of the last hour: slots of ten seconds, the calls in flight, and the reasons of failures."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from runed.daemon.history import History, Sample
from runed.domain.history import SLOT_SECONDS, SLOTS
from tests.support import RunningDaemon, wait_until


@dataclass
class World:
    """A history whose clock and numbers the test sets."""

    now: float = 1_000_000.0
    sample: Sample = field(default_factory=Sample)
    samples: int = 0

    def __post_init__(self) -> None:
        self.history = History(self.read, lambda: self.now)

    def read(self) -> Sample:
        self.samples += 1
        return self.sample

    def pass_slot(self, sample: Sample) -> None:
        """Let a slot pass, at whose end others have counted so much."""
        self.now += SLOT_SECONDS
        self.sample = sample
        self.history.tick()

    def call(self, seconds: float) -> None:
        work = self.history.begin("batch", "unix:1", 2)
        self.now += seconds
        self.history.end(work)


@pytest.fixture
async def world() -> World:
    return World()


async def test_slot_has_what_was_counted_in_it(world: World) -> None:
    world.call(0.5)
    world.call(1.0)
    world.history.count_errors("EMPTY_TEXT", {})
    world.pass_slot(Sample(texts=4, tokens=40, queued=3, engine_bytes=7))
    world.pass_slot(Sample(texts=10, tokens=100, queued=0, engine_bytes=7))
    first, second = world.history.last_hour().slots
    assert (first.texts, first.tokens, first.calls, first.errors, first.queued, first.engine_bytes) == (4, 40, 2, 1, 3, 7)
    assert first.p50_seconds == pytest.approx(0.5, rel=0.06)
    assert first.p99_seconds == pytest.approx(1.0, rel=0.06)
    assert (second.texts, second.tokens, second.calls, second.errors, second.p99_seconds) == (6, 60, 0, 0, 0.0)
    assert second.number == first.number + 1


async def test_slots_in_which_nothing_changed_are_not_kept(world: World) -> None:
    busy = Sample(texts=4, engine_bytes=7)
    world.pass_slot(busy)
    for _ in range(5):
        world.pass_slot(busy)
    world.pass_slot(Sample(texts=4))  # the engine stops
    slots = world.history.last_hour().slots
    assert [slot.engine_bytes for slot in slots] == [7, 0]
    assert slots[1].number - slots[0].number == 6


async def test_later_slots_alone_are_returned_and_only_those_of_the_hour(world: World) -> None:
    for count in range(1, 4):
        world.pass_slot(Sample(texts=count))
    slots = world.history.last_hour().slots
    assert [slot.texts for slot in world.history.last_hour(since=slots[0].number).slots] == [1, 1]
    assert world.history.last_hour(since=slots[-1].number).slots == []
    world.now += (SLOTS + 2) * SLOT_SECONDS
    assert world.history.last_hour().slots == []


async def test_memory_is_bounded(world: World) -> None:
    for count in range(2 * SLOTS):  # some of the numbers lie within the last hour alone
        world.call(0.001 * (count % 7))
        world.pass_slot(Sample(texts=1_000_000 + count, tokens=10_000_000 + count, queued=1000 + count, engine_bytes=2**33))
    slots = world.history.last_hour().slots
    assert len(slots) == SLOTS
    size = sum(sys.getsizeof(slot) + sum(sys.getsizeof(getattr(slot, name)) for name in slot.__slots__) for slot in slots)
    assert size < 150_000


async def test_calls_in_flight_are_told_until_they_end(world: World) -> None:
    stream = world.history.begin("stream", "unix:7")
    batch = world.history.begin("batch", "tcp:8", 3)
    stream.texts += 5
    stream.model = "mine"
    works = world.history.last_hour().works
    assert [(work.kind, work.client, work.texts, work.model) for work in works] == [
        ("stream", "unix:7", 5, "mine"),
        ("batch", "tcp:8", 3, ""),
    ]
    world.history.end(stream)
    assert list(world.history.last_hour().works) == [batch]
    world.history.end(batch)
    world.pass_slot(Sample(texts=8))
    assert world.history.last_hour().slots[0].calls == 1  # the time of a stream is that of its client


async def test_errors_are_reasons_with_times_the_last_one_first(world: World) -> None:
    world.history.count_errors("EMPTY_TEXT", {})
    world.history.count_errors("QUEUE_FULL", {})
    world.history.count_errors("", {"EMPTY_TEXT": 2})
    world.history.count_errors("CANCELED", {})  # its client has gone
    world.history.count_errors("", {})
    failures = world.history.last_hour().failures
    assert [(failure.reason, failure.times) for failure in failures] == [("EMPTY_TEXT", 3), ("QUEUE_FULL", 1)]
    world.pass_slot(Sample())
    assert world.history.last_hour().slots[0].errors == 4


async def test_nothing_is_sampled_before_the_first_call(world: World) -> None:
    loop = asyncio.get_running_loop()
    assert not loop._scheduled  # type: ignore[attr-defined] # the timers of asyncio's own loop
    work = world.history.begin("batch", "unix:1")
    assert len(loop._scheduled) == 1  # type: ignore[attr-defined] # as above
    world.history.end(work)


@pytest.mark.parametrize(("engine_bytes", "ticks_on"), [(0, False), (7, True)])
async def test_timer_ends_when_no_engine_runs_and_no_call_is_served(world: World, engine_bytes: int, *, ticks_on: bool) -> None:
    world.call(0.1)
    world.sample = Sample(engine_bytes=engine_bytes)
    world.history._fire()
    assert (world.history._timer is not None) == ticks_on


@pytest.mark.slow
def test_daemon_tells_its_last_hour_until_its_engine_sleeps(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="12s")  # longer than a slot, so that the end of one sees the engine
    daemon.wait_for("STATUS_OK")
    with daemon.http() as http:

        def slots() -> list[dict[str, Any]]:
            history = http.get("/page/state").json()["history"]
            return [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]

        for text in ("one", "two", "three"):
            daemon.call("Embed", {"text": text})
        assert http.post("/runed.v1.RunedService/Embed", json={"text": " "}).status_code == 400
        wait_until(lambda: (found := slots()) and not found[-1]["engine_bytes"], timeout=100, what="a slot without an engine")
        found = slots()
        state = http.get("/page/state", params={"since": found[-1]["number"]}).json()
    assert [sum(slot[name] for slot in found) for name in ("texts", "calls", "errors")] == [3, 4, 1]
    assert max(slot["engine_bytes"] for slot in found) > 0
    assert max(slot["p99_seconds"] for slot in found) > 0
    assert state["history"]["rows"] == []
    assert [(error["reason"], error["times"]) for error in state["errors"]] == [("EMPTY_TEXT", 1)]
    assert state["work"] == []
