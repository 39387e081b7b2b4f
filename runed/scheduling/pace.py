"""Measures the speed of a backend. It tells when to try again, and how large a bulk batch may be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from runed.backends.base import BatchLimits
from runed.domain.requests import Lane
from runed.scheduling.queue import QueueEntry

MIN_RETRY_AFTER = 0.05
"""Shortest time that a caller is told to wait when the queue is full, in seconds."""

MAX_RETRY_AFTER = 30.0
"""Longest time that a caller is told to wait when the queue is full, in seconds."""

FIRST_RETRY_AFTER = 1.0
"""Time that a caller is told to wait before any speed was measured, in seconds."""

_WEIGHT = 0.2
"""The weight of the newest micro-batch in the measured speed."""

_BULK_PATIENCE = 2.5
"""Longest time of a bulk micro-batch while interactive texts come now and then, in multiples of an interactive text's time
alone. An interactive text waits for the micro-batch in flight, and should take at most 4 times its time alone."""

_INTERACTIVE_MEMORY = 5.0
"""Seconds after an interactive text during which another one is likely."""


class Pace:
    """The speed of one backend, learned from each micro-batch.

    Attributes:
        seconds_per_token: The time of a token in a micro-batch of usual size; None before the first one.
    """

    def __init__(self) -> None:
        self.seconds_per_token: float | None = None
        self._seconds_per_byte: float | None = None
        self._bulk_seconds_per_token: float | None = None
        self._lone_seconds: float | None = None
        self._interactive_until = 0.0

    def learn(self, batch: Sequence[QueueEntry], tokens: int, seconds: float) -> None:
        """Learn from one micro-batch.

        Args:
            batch: Its entries, all of one lane.
            tokens: The number of their tokens.
            seconds: The time of the backend, without that of a start.
        """
        self._seconds_per_byte = _smoothed(self._seconds_per_byte, seconds / max(1, sum(entry.size for entry in batch)))
        self.seconds_per_token = _smoothed(self.seconds_per_token, seconds / tokens)
        if batch[0].lane is Lane.BULK:
            self._bulk_seconds_per_token = _smoothed(self._bulk_seconds_per_token, seconds / tokens)
        else:
            self._interactive_until = asyncio.get_running_loop().time() + _INTERACTIVE_MEMORY
            if len(batch) == 1:
                self._lone_seconds = _smoothed(self._lone_seconds, seconds)

    def retry_after(self, size: float) -> float:
        """Estimate the seconds until the given number of bytes has been computed, within `MIN_` and `MAX_RETRY_AFTER`."""
        seconds = FIRST_RETRY_AFTER if self._seconds_per_byte is None else size * self._seconds_per_byte
        return min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER)

    @property
    def patience(self) -> float | None:
        """The seconds that an interactive text may wait for a bulk micro-batch; None if no such text is likely."""
        expected = asyncio.get_running_loop().time() < self._interactive_until
        return _BULK_PATIENCE * self._lone_seconds if expected and self._lone_seconds else None

    def bulk_limits(self, limits: BatchLimits, others: Iterable[Pace] = ()) -> BatchLimits:
        """Return the limits of a bulk micro-batch: those of the backend, or lower ones if interactive texts may come.

        Args:
            limits: The limits of the backend.
            others: The speeds of the backends whose interactive texts would wait for it, too.
        """
        patience = min(filter(None, [self.patience, *(other.patience for other in others)]), default=None)
        if patience is None or not self._bulk_seconds_per_token:
            return limits
        tokens = int(patience / self._bulk_seconds_per_token)
        return BatchLimits(texts=limits.texts, tokens=max(1, min(tokens, limits.tokens)))


def _smoothed(value: float | None, newest: float) -> float:
    return newest if value is None else (1 - _WEIGHT) * value + _WEIGHT * newest
