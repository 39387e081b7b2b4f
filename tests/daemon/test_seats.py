"""Engines within a bound of memory: who gets room, who makes it, and that starts are paid for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from runed.backends.base import BackendState, BackendStatus, BatchLimits, EmbeddingBatch, TextInput, Tokens, pack
from runed.daemon import seats as module
from runed.daemon.seats import Seat, Seats
from runed.domain.model import ModelInfo
from runed.domain.requests import Lane
from runed.errors import BackendUnavailableError, ModelTooLargeError
from tests.scheduling.virtual import virtual_time

MIB = 1024**2
START = 2.0
"""Seconds of the start of an engine."""


class Engine:
    """A backend whose engine starts in `START` seconds and embeds in 0.01 s. It notes its starts and stops."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status = BackendStatus.STOPPED
        self.starts = 0
        self.stops = 0
        self.active = 0
        self.fails = False
        self._starting: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("sha256:0", "timed", "bert", 8, 512, "mean", "F32", "0")

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(4, 100)

    @property
    def state(self) -> BackendState:
        running = self.status in {BackendStatus.READY, BackendStatus.STARTING}
        return BackendState(self.status, pid=self.pid if running else 0)

    async def start(self) -> None:
        if self.status is BackendStatus.READY:
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._come_up())
        await asyncio.shield(self._starting)

    async def _come_up(self) -> None:
        self.starts += 1
        self.status = BackendStatus.STARTING
        await asyncio.sleep(START)
        self._starting = None
        self.status = BackendStatus.FAILED if self.fails else BackendStatus.READY
        if self.fails:
            raise BackendUnavailableError("it does not come up")

    async def stop(self) -> None:
        assert not self.active, "stopped while it works"
        await asyncio.sleep(0.1)
        self.stops += 1
        self.status = BackendStatus.STOPPED

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        await self.start()
        self.active += 1
        await asyncio.sleep(0.01)
        self.active -= 1
        return EmbeddingBatch([b""] * len(texts), len(texts))

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        return [str(token) for token in tokens]

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        await self.start()
        return [pack([1]) for _ in texts]


class Room:
    """Seats for engines of given sizes, in MiB. `running` tells at each moment which engines run."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, *, strict: bool = True, most: int = 0, **sizes: int
    ) -> None:
        self.seats = Seats(limit * MIB, strict=strict, most=most)
        self.engines = {name: Engine(number + 1) for number, name in enumerate(sizes)}
        self.sizes = {engine.pid: sizes[name] * MIB for name, engine in self.engines.items()}
        monkeypatch.setattr(module, "peak_resident_bytes", self.sizes.__getitem__)
        self.seat = {
            name: Seat(engine, self.seats, name=name, file_bytes=self.sizes[engine.pid] // 2)
            for name, engine in self.engines.items()
        }
        self.demand: dict[str, Counter[Lane]] = {name: Counter() for name in sizes}
        for name, seat in self.seat.items():
            seat.demand = self.demand[name]
            seat.peak = self.sizes[self.engines[name].pid]  # as if it had run before
        self.limit = limit * MIB

    @property
    def running(self) -> set[str]:
        return {name for name, engine in self.engines.items() if engine.status is not BackendStatus.STOPPED}

    @property
    def memory(self) -> int:
        return sum(self.sizes[self.engines[name].pid] for name in self.running)

    @contextmanager
    def wanted(self, name: str, lane: Lane) -> Iterator[None]:
        self.demand[name][lane] += 1
        try:
            yield
        finally:
            self.demand[name][lane] -= 1

    async def embed(self, name: str, lane: Lane = Lane.INTERACTIVE) -> None:
        with self.wanted(name, lane):
            await self.seat[name].embed(["x"])

    async def job(self, name: str, batches: int) -> None:
        """Compute a bulk job, as one long call."""
        with self.wanted(name, Lane.BULK):
            for _ in range(batches):
                await self.seat[name].embed(["x"])
                assert self.memory <= self.limit * 1.05


@virtual_time
async def _ends_where_two_fit(room: Room) -> None:
    for _ in range(5):
        await room.embed("a")
        await room.embed("b")
    assert room.running == {"a", "b"}
    assert [engine.starts for engine in room.engines.values()] == [1, 1]


def test_engines_that_fit_together_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    _ends_where_two_fit(Room(monkeypatch, 250, a=100, b=100))


def test_the_least_recently_used_engine_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 250, a=100, b=100, c=100)
        await room.embed("a")
        await room.embed("b")
        await room.embed("a")
        await asyncio.sleep(60)
        await room.embed("c")
        assert room.running == {"a", "c"}

    run()


def test_as_many_engines_leave_as_have_to_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 410, a=100, b=100, c=100, d=100, big=250)
        for name in "abcd":
            await room.embed(name)
        await asyncio.sleep(60)
        await room.embed("big")
        assert room.running == {"d", "big"}
        assert room.memory <= room.limit

    run()


def test_the_number_of_engines_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 10_000, most=2, a=100, b=100, c=100)
        for name in "abc":
            await room.embed(name)
        assert room.running == {"b", "c"}

    run()


def test_a_working_engine_never_stops_and_gives_its_room_up_when_its_calls_end(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)  # Engine.stop fails while the engine works
        job = asyncio.create_task(room.job("a", 300))
        await asyncio.sleep(START + 0.5)
        await room.embed("b")
        assert not job.done()
        assert room.engines["a"].stops == 1
        await job
        assert room.engines["a"].starts == 2

    run()


@pytest.mark.parametrize(("size", "peak"), [(200, 0), (150, 150)])
def test_an_engine_for_which_there_is_never_room_is_refused_with_the_numbers(
    size: int, peak: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 90, big=size)
        room.seat["big"].peak = peak * MIB
        with pytest.raises(ModelTooLargeError, match=rf"{peak or size // 2} MiB.*90 MiB \(RUNED_MEMORY\)") as refusal:
            await room.embed("big")
        assert refusal.value.metadata == {
            "model": "big",
            "bytes": str((peak or size // 2) * MIB),
            "limit": str(90 * MIB),
        }
        assert room.engines["big"].starts == 0

    run()


def test_one_engine_alone_may_exceed_the_built_in_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 90, strict=False, big=200, small=10)
        await room.embed("big")
        await asyncio.sleep(60)
        await room.embed("small")
        assert room.running == {"small"}

    run()


def test_an_engine_that_turns_out_too_large_leaves_and_serves_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 90, big=150)  # its file of 75 MiB would fit
        room.seat["big"].peak = 0
        with pytest.raises(ModelTooLargeError, match="took 150 MiB"):
            await room.embed("big")
        await asyncio.sleep(1)
        assert room.running == set()
        with pytest.raises(ModelTooLargeError, match="took 150 MiB"):
            await room.embed("big")

    run()


def test_an_engine_that_grows_makes_another_one_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 210, a=100, b=100)
        await room.embed("a")
        await room.embed("b")
        room.sizes[room.engines["b"].pid] = 150 * MIB
        await asyncio.sleep(2)
        await room.embed("b")
        await asyncio.sleep(1)
        assert room.running == {"b"}

    run()


def test_two_bulk_jobs_spend_at_most_a_fifth_of_their_time_on_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(room.job("a", 4000), room.job("b", 4000))
        took = asyncio.get_running_loop().time() - began
        starts = sum(engine.starts for engine in room.engines.values())
        assert starts * (START + 0.1) <= 0.2 * took
        assert all(engine.starts > 2 for engine in room.engines.values()), "they take turns"

    run()


def test_clients_of_two_models_in_turn_need_one_start_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        turns: list[str] = []

        async def client() -> None:
            for _ in range(20):
                for name in "ab":
                    await room.embed(name)
                    if turns[-1:] != [name]:
                        turns.append(name)

        await asyncio.gather(*(client() for _ in range(8)))
        starts = sum(engine.starts for engine in room.engines.values())
        assert starts <= len(turns) + 1
        assert starts <= 2 * 20 + 2, "a start serves all clients that wait for it"

    run()


def test_two_clients_that_ask_without_pause_do_not_start_an_engine_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        texts: Counter[str] = Counter()

        async def client(name: str) -> None:
            while True:
                await room.embed(name)
                texts[name] += 1
                await asyncio.sleep(0.005)

        clients = [asyncio.create_task(client(name)) for name in "ab"]
        await asyncio.sleep(120)
        for task in clients:
            task.cancel()
        assert sum(texts.values()) / sum(engine.starts for engine in room.engines.values()) > 100
        assert min(texts.values()) > 0.3 * max(texts.values())

    run()


def test_a_person_waits_for_one_start_of_bulk_work_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        job = asyncio.create_task(room.job("a", 2000))
        await asyncio.sleep(START + 0.05)  # the turn has just begun
        began = asyncio.get_running_loop().time()
        await room.embed("b")
        assert asyncio.get_running_loop().time() - began <= START + 0.1 + START + 0.2
        await job

    run()


def test_bulk_work_gets_a_turn_beside_interactive_texts_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)

        async def chat() -> None:
            while True:
                await room.embed("a")

        chatting = asyncio.create_task(chat())
        await asyncio.sleep(START + 0.5)
        async with asyncio.timeout(10 * START):
            await room.embed("b", Lane.BULK)
        chatting.cancel()

    run()


def test_interactive_texts_get_room_before_bulk_texts_that_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100, c=100)
        order: list[str] = []

        async def ask(name: str, lane: Lane) -> None:
            await room.embed(name, lane)
            order.append(name)

        await room.embed("a")
        bulk = asyncio.create_task(ask("b", Lane.BULK))
        await asyncio.sleep(0.01)
        await asyncio.gather(ask("c", Lane.INTERACTIVE), bulk)
        assert order == ["c", "b"]

    run()


def test_a_caller_that_leaves_gives_its_place_up(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100, c=100)
        job = asyncio.create_task(room.job("a", 500))
        await asyncio.sleep(START + 0.1)
        impatient = asyncio.create_task(room.embed("b"))
        await asyncio.sleep(0.1)
        impatient.cancel()
        await asyncio.wait([impatient])
        await job
        assert room.engines["b"].starts == 0
        assert room.engines["a"].starts == 1

    run()


def test_an_engine_that_does_not_come_up_keeps_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        room.engines["a"].fails = True
        with pytest.raises(BackendUnavailableError):
            await room.embed("a")
        assert room.seats.used == 0
        await room.embed("b")
        assert room.engines["b"].starts == 1

    run()


def test_an_engine_that_is_being_stopped_still_counts_for_its_users_and_no_more_for_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100)
        await room.embed("a")
        stopping = asyncio.create_task(room.seat["a"].stop())
        await asyncio.sleep(0.05)
        assert room.seat["a"].engine_state.status is BackendStatus.READY
        assert room.seat["a"].state.status is BackendStatus.STOPPED
        assert room.seats.used > 0
        await stopping
        assert room.seats.used == 0

    run()


def test_an_engine_that_was_suspended_needs_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual_time
    async def run() -> None:
        room = Room(monkeypatch, 150, a=100, b=100)
        await room.embed("a")
        stopping = asyncio.create_task(room.seat["a"].stop())
        await asyncio.sleep(0.05)
        late = asyncio.create_task(room.embed("a"))  # while it stops
        other = asyncio.create_task(room.embed("b"))
        await asyncio.gather(stopping, late, other)
        assert room.engines["a"].starts == 2
        assert room.memory <= room.limit

    run()
