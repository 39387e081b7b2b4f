"""Decides which engines run at once: all together within a bound of memory, each for long enough to pay for its start."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from runed.backends.base import (
    BackendState,
    BackendStatus,
    BatchLimits,
    EmbeddingBatch,
    LocalBackend,
    PairBackend,
    TextInput,
    Tokens,
)
from runed.domain.model import ModelInfo
from runed.domain.requests import Lane
from runed.errors import ModelTooLargeError
from runed.log import describe_exception, get_logger
from runed.processes import peak_resident_bytes

_FIRST_SHARE, _FIRST_BYTES = 1.5, 256 * 1024**2
"""The memory that an engine is given before it was ever measured: a multiple of its file, and as many bytes more."""

_GROWTH = 1.02
"""How much more than its highest memory so far an engine may take in its next run."""

_SHORTEST_START = 0.2
"""Least seconds that the start of an engine counts for."""

_QUIET_SHARE = 0.1
"""An engine that nobody has needed for this share of the time of its start may leave. Callers who ask again at once keep it."""

_TURNS: dict[tuple[Lane, Lane], float] = {
    (Lane.INTERACTIVE, Lane.INTERACTIVE): 2,
    (Lane.BULK, Lane.INTERACTIVE): 1,
    (Lane.INTERACTIVE, Lane.BULK): 5,
    (Lane.BULK, Lane.BULK): 5,
}
"""How long an engine keeps its seat while texts wait for it, in multiples of the time of its start: by the lane of these texts,
and by the lane of the texts that wait for another engine. So two bulk jobs spend at most a sixth of their time on starts, and a
person waits for one start of bulk work at most."""

_LOOK = 0.05
"""Seconds between two looks at whether an engine may leave, while another one waits for its room."""

_MEASURE = 1.0
"""Seconds between two looks at the memory of an engine that works beside others."""

_BULK_PATIENCE = 20.0
"""Seconds after which an engine for bulk texts no longer lets those for interactive texts go first."""

_STOPPED = {BackendStatus.STOPPED, BackendStatus.FAILED, BackendStatus.DEVICE_FAILED}

_log = get_logger(__name__)


class Seats:
    """The room for engines. All methods must be called in one event loop.

    Engines that wait for room get it in the order of their coming, those with interactive texts first. Room is made by the
    engine that was not used for the longest time. One that works never leaves.

    Args:
        limit: The most bytes of memory of all engines together.
        strict: Whether one engine alone must keep within the limit, too.
        most: The most engines; 0 means that only the memory bounds them.

    Attributes:
        limit: As above.
        most: As above.
        starts: How often an engine got room.
    """

    def __init__(self, limit: int, *, strict: bool, most: int = 0) -> None:
        self.limit = limit
        self.most = most
        self.starts = 0
        self._strict = strict
        self._seated: list[Seat] = []
        self._waiting: list[Seat] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def used(self) -> int:
        """The bytes of memory of all engines that run."""
        return sum(seat.memory for seat in self._seated)

    @property
    def is_shared(self) -> bool:
        """Whether several engines have room."""
        return len(self._seated) > 1

    def check(self, seat: Seat) -> None:
        """Refuse an engine for which there is never room.

        Raises:
            ModelTooLargeError: It takes more memory than the limit.
        """
        if self._strict and (least := seat.peak or seat.file_bytes) > self.limit:
            took = "took" if seat.peak else "takes at least"
            raise ModelTooLargeError(
                f"the engine of {seat.name} {took} {_mib(least)} of memory, and all engines together may take "
                f"{_mib(self.limit)} (RUNED_MEMORY); raise that, or choose a smaller model or variant",
                metadata={"model": seat.name, "bytes": str(least), "limit": str(self.limit)},
            )

    async def take(self, seat: Seat) -> None:
        """Wait until an engine has room.

        Raises:
            ModelTooLargeError: There is never room for it.
        """
        while not seat.arrival.is_set():
            self.check(seat)
            if seat not in self._waiting:
                self._waiting.append(seat)
                seat.waiting_since = asyncio.get_running_loop().time()
            arrival = seat.arrival
            seat.waiters += 1
            try:
                self.arrange()
                await arrival.wait()
            finally:
                seat.waiters -= 1
                if not seat.waiters and seat in self._waiting:
                    self._waiting.remove(seat)
                    seat.is_promised = False

    def vacate(self, seat: Seat) -> None:
        """Note that an engine does not run any more."""
        if seat in self._seated:
            self._seated.remove(seat)
            seat.leave()
            self.arrange()

    def arrange(self) -> None:
        """Give room to engines that wait for it, and make it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for seat in [seat for seat in self._seated if seat.is_deserted]:
            self._seated.remove(seat)
            seat.leave()
        self._shed()
        loop = asyncio.get_running_loop()
        for seat in sorted(self._waiting, key=lambda seat: (not seat.is_promised, seat.is_patient(loop.time()))):
            if seat in self._seated:
                continue  # it leaves, and comes again afterwards
            if not self._fits(seat, self._seated):
                self._make_room(seat)
                self._timer = loop.call_later(_LOOK, self.arrange)
                return  # the next one must not take the room that this one waits for
            self._waiting.remove(seat)
            self._seated.append(seat)
            self.starts += 1
            seat.sit()

    def _shed(self) -> None:
        """Let an engine leave that takes more memory than was known when it came."""
        staying = [seat for seat in self._seated if not seat.leaving and not seat.is_starting]
        if self._strict:
            for seat in [seat for seat in staying if seat.peak > self.limit]:
                self._dismiss(seat)
        staying = [seat for seat in staying if not seat.leaving]
        if len(staying) > 1 and sum(seat.memory for seat in self._seated if not seat.leaving) > self.limit:
            self._dismiss(min(staying, key=lambda seat: seat.last_used))

    def _fits(self, seat: Seat, others: Sequence[Seat]) -> bool:
        if not others:
            return True
        within = seat.memory + sum(other.memory for other in others) <= self.limit
        return within and (not self.most or len(others) < self.most)

    def _make_room(self, seat: Seat) -> None:
        """Let engines leave until another one fits, if there are enough of them that may."""
        staying = [other for other in self._seated if not other.leaving]
        leaving: list[Seat] = []
        for other in sorted(staying, key=lambda other: other.last_used):
            if self._fits(seat, staying):
                break
            if other.may_leave(seat.lane):
                leaving.append(other)
                staying.remove(other)
        if self._fits(seat, staying):
            for other in leaving:
                _log.info("engine makes room", model=other.name, for_model=seat.name)
                self._dismiss(other)
            seat.is_promised = bool(leaving) or seat.is_promised

    def _dismiss(self, seat: Seat) -> None:
        seat.ask_to_leave()
        if not seat.inside:
            self.end(seat)

    def end(self, seat: Seat) -> None:
        """Stop an engine that has to leave and that nobody uses any more."""
        task = asyncio.create_task(self._stop(seat))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop(self, seat: Seat) -> None:
        if not seat.leaving:
            return  # it was stopped meanwhile
        try:
            await seat.stop()
        except Exception as error:  # noqa: BLE001 # others wait for the room
            _log.error("engine could not be stopped", model=seat.name, **describe_exception(error))
            self.vacate(seat)


class Seat:
    """A backend that runs its engine only while it has room.

    Args:
        backend: The backend.
        seats: The room for all engines.
        name: The name of the model.
        file_bytes: The size of the model's file.

    Attributes:
        name: As above.
        file_bytes: As above.
        demand: The calls that wait for the engine, by lane.
        peak: The most bytes of memory that the engine ever took; 0 before it has run.
        inside: The number of calls that use the engine.
        leaving: Whether the engine is stopped as soon as no call uses it.
        last_used: The time of the last use, in seconds of the event loop's clock.
        waiters: The number of calls that wait for room.
        waiting_since: The time since which the first of them waits.
        is_promised: Whether other engines left for this one. They must not take the room again.
        arrival: Set when there is room.
    """

    def __init__(self, backend: LocalBackend, seats: Seats, *, name: str, file_bytes: int) -> None:
        self.name = name
        self.file_bytes = file_bytes
        self.demand: Mapping[Lane, int] = Counter()
        self.peak = 0
        self.inside = 0
        self.leaving = False
        self.last_used = 0.0
        self.waiters = 0
        self.waiting_since = 0.0
        self.is_promised = False
        self.arrival = asyncio.Event()
        self._backend = backend
        self._seats = seats
        self._sat_down = self._measured = 0.0
        self._ready_since: float | None = None
        self._start_seconds = _SHORTEST_START

    @property
    def model(self) -> ModelInfo:
        """See `Embedder.model`."""
        return self._backend.model

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        return self._backend.limits

    @property
    def state(self) -> BackendState:
        """See `Embedder.state`. An engine that has to leave counts as stopped: no text gets to it any more."""
        state = self._backend.state
        return replace(state, status=BackendStatus.STOPPED) if self.leaving and not self.inside else state

    @property
    def engine_state(self) -> BackendState:
        """The state of the engine for its users. While it is being stopped, its memory is not free yet."""
        return self._backend.state

    @property
    def is_starting(self) -> bool:
        """Whether the engine has room and has not worked yet."""
        return self._ready_since is None

    @property
    def is_deserted(self) -> bool:
        """Whether there is room for the engine, and it neither runs nor will."""
        return not (self.inside or self.waiters or self.leaving) and self._backend.state.status in _STOPPED

    @property
    def memory(self) -> int:
        """The bytes of memory that the engine takes, or may take."""
        return int(self.peak * _GROWTH) or int(self.file_bytes * _FIRST_SHARE) + _FIRST_BYTES

    @property
    def lane(self) -> Lane:
        """The lane of the most urgent call."""
        return Lane.BULK if self.demand[Lane.BULK] and not self.demand[Lane.INTERACTIVE] else Lane.INTERACTIVE

    async def start(self) -> None:
        """See `Managed.start`."""
        async with self._using():
            await self._backend.start()

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """See `Embedder.embed`."""
        async with self._using():
            return await self._backend.embed(texts)

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.tokenize`."""
        async with self._using():
            return await self._backend.tokenize(texts)

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """See `Speller.spell`."""
        async with self._using():
            return await self._backend.spell(tokens)

    async def stop(self) -> None:
        """See `Managed.stop`."""
        self._measure()
        self.ask_to_leave()  # so that no call begins to use an engine that ends
        await self._backend.stop()
        self._seats.vacate(self)

    def sit(self) -> None:
        """Note that there is room."""
        self.is_promised = False
        self._sat_down = self.last_used = asyncio.get_running_loop().time()
        self.arrival.set()

    def ask_to_leave(self) -> None:
        """Let new calls wait for room."""
        self.leaving = True
        if self.arrival.is_set():
            self.arrival = asyncio.Event()

    def leave(self) -> None:
        """Note that there is no room any more."""
        self.ask_to_leave()
        self.leaving = False
        self._ready_since = None

    def is_patient(self, now: float) -> bool:
        """Return whether interactive texts of other models go first."""
        return not self.is_promised and self.lane is Lane.BULK and now - self.waiting_since < _BULK_PATIENCE

    def may_leave(self, lane: Lane) -> bool:
        """Return whether this engine may leave for texts of a lane that wait for another engine."""
        if self._ready_since is None:
            return False  # a start that is thrown away helps nobody
        now = asyncio.get_running_loop().time()
        is_quiet = not (self.inside or self.waiters or any(self.demand.values()))
        if is_quiet and now - self.last_used >= _QUIET_SHARE * self._start_seconds:
            return True
        return now - self._ready_since >= _TURNS[self.lane, lane] * self._start_seconds

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[None]:
        if not self.arrival.is_set():
            await self._seats.take(self)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            is_first = self._note_use()
        if is_first:
            self._seats.check(self)  # a model that is refused from now on must not have served one call

    def _note_use(self) -> bool:
        """Note the end of a use, and return whether it was the first one since the start of the engine."""
        self.last_used = now = asyncio.get_running_loop().time()
        is_first = self._ready_since is None and self._backend.state.status is BackendStatus.READY
        if is_first:
            self._ready_since = now
            self._start_seconds = max(now - self._sat_down, _SHORTEST_START)
            self._measure()
            self._seats.arrange()
        elif now - self._measured > _MEASURE and self._seats.is_shared:
            self._measure()
            self._seats.arrange()
        if self.leaving and not self.inside:
            self._seats.end(self)
        elif self.is_deserted:
            self._seats.vacate(self)
        return is_first

    def _measure(self) -> None:
        self._measured = asyncio.get_running_loop().time()
        if pid := self._backend.state.pid:
            self.peak = max(self.peak, peak_resident_bytes(pid))


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"


class PairSeat(Seat):
    """The seat of a reranker. It has the arguments of `Seat`."""

    def __init__(self, backend: PairBackend, seats: Seats, *, name: str, file_bytes: int) -> None:
        super().__init__(backend, seats, name=name, file_bytes=file_bytes)
        self._pairs = backend

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See `PairBackend.detokenize`."""
        async with self._using():
            return await self._pairs.detokenize(tokens)
