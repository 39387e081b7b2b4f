"""The memory of the last hour. It samples what others count, and does nothing while no call is served and no engine runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runed.api.error_codes import CanceledError
from runed.domain.history import SLOT_SECONDS, SLOTS, Failure, LastHour, Slot, Work
from runed.metrics import bucket_of, percentile_of

_STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Sample:
    """What others count.

    Attributes:
        texts: Texts that were answered with a vector since the start.
        tokens: Tokens that were computed since the start.
        queued: Texts that wait.
        engine_bytes: The memory that is counted for all engines.
    """

    texts: int = 0
    tokens: int = 0
    queued: int = 0
    engine_bytes: int = 0


class History:
    """Remembers the last hour in slots of time, the calls in flight, and the reasons of failures. For use in one event loop.

    A timer ticks once in `SLOT_SECONDS` while a call is served or an engine runs. A slot in which nothing changed is not kept.
    All slots together take less than 150 KB.

    Args:
        sample: Reads what others count.
        clock: Returns seconds that only grow.
    """

    def __init__(self, sample: Callable[[], Sample], clock: Callable[[], float] = time.monotonic) -> None:
        self._sample = sample
        self._clock = clock
        self._born = time.time()
        self._slots: deque[Slot] = deque(maxlen=SLOTS)
        self._number = self._now
        self._last = Sample()
        self._times: Tally[int] = Tally()
        self._errors = 0
        self._works: dict[int, Work] = {}
        self._failures: dict[str, Failure] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, kind: str, client: str, texts: int = 0) -> Work:
        """Take note of a call, and return it. `end` has to follow.

        Args:
            kind: As in `Work`.
            client: As in `Work`.
            texts: As in `Work`.
        """
        work = Work(kind, client, self._clock(), texts)
        self._works[id(work)] = work
        self._wake()
        return work

    def end(self, work: Work) -> None:
        """Take note of the end of a call."""
        del self._works[id(work)]
        if work.kind != _STREAM:  # the time of a stream is that of its client
            self._times[bucket_of(self._clock() - work.began)] += 1

    def count_errors(self, reason: str, texts: Mapping[str, int]) -> None:
        """Count the errors of a call that has ended. A client that has gone is none.

        Args:
            reason: The reason of the error of the call, or "".
            texts: The number of texts with errors of their own, by reason.
        """
        if reason and reason != CanceledError.reason:
            self._count_error(reason, 1)
        for each, times in texts.items():
            self._count_error(each, times)

    def last_hour(self, since: int = 0) -> LastHour:
        """Return what is remembered.

        Args:
            since: A number of a slot. Later slots alone are returned.
        """
        self._wake()
        oldest = max(since, self._now - SLOTS - 1)
        return LastHour(
            born=self._born,
            now=self._now,
            slots=[slot for slot in self._slots if slot.number > oldest],
            works=list(self._works.values()),
            failures=list(reversed(self._failures.values())),
        )

    def tick(self) -> None:
        """Close the present slot, and begin the next one."""
        sample, last = self._sample(), self._last
        slot = Slot(
            number=self._number,
            texts=sample.texts - last.texts,
            tokens=sample.tokens - last.tokens,
            calls=self._times.total(),
            errors=self._errors,
            p50_seconds=percentile_of(self._times, 0.5),
            p99_seconds=percentile_of(self._times, 0.99),
            queued=sample.queued,
            engine_bytes=sample.engine_bytes,
        )
        if sample != last or slot.calls or slot.errors:
            self._slots.append(slot)
        self._number, self._last, self._errors = self._now, sample, 0
        self._times.clear()

    def _count_error(self, reason: str, times: int) -> None:
        self._errors += times
        before = self._failures.pop(reason, None)
        self._failures[reason] = Failure(reason, before.times + times if before else times, time.time())

    @property
    def _now(self) -> int:
        return int(self._clock() // SLOT_SECONDS)

    def _wake(self) -> None:
        if self._timer is None:
            self._number = self._now
            self._set_timer()

    def _set_timer(self) -> None:
        seconds = SLOT_SECONDS - self._clock() % SLOT_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.tick()
        if self._works or self._last.engine_bytes:
            self._set_timer()
