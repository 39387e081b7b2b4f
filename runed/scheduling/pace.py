"""Measures the speed of a backend. It tells when to try again, and how large a batch may be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

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


_GATHERING = 0.003
"""Seconds that a micro-batch waits at least for the callers of the last one, who often send their next text at once. Batches
are larger then, and the engine shares its cores with fewer requests."""

_RETURN_SHARE = 0.25
"""Longest time for all callers to come back that is worth waiting for, in parts of the time of their micro-batch."""

_RETURN_SPREAD = 1.5
"""Time to wait for callers, in multiples of the time that they usually need."""


class Pace:
    """The speed of one backend, learned from each micro-batch.

    Attributes:
        seconds_per_token: The time of a token in a micro-batch of usual size; None before the first one.
    """

    def __init__(self) -> None:
        self.seconds_per_token: float | None = None
        self._seconds_per_byte: float | None = None
        self._tokens_per_byte: float | None = None
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
        size = max(1, sum(entry.size for entry in batch))
        self._seconds_per_byte = _smoothed(self._seconds_per_byte, seconds / size)
        self._tokens_per_byte = _smoothed(self._tokens_per_byte, tokens / size)
        self.seconds_per_token = _smoothed(self.seconds_per_token, seconds / tokens)
        if batch[0].lane is Lane.BULK:
            self._bulk_seconds_per_token = _smoothed(self._bulk_seconds_per_token, seconds / tokens)
        else:
            self._interactive_until = asyncio.get_running_loop().time() + _INTERACTIVE_MEMORY
            if len(batch) == 1:
                self._lone_seconds = _smoothed(self._lone_seconds, seconds)

    def estimate_tokens(self, entries: Iterable[QueueEntry]) -> None:
        """Replace upper bounds by the tokens that a text most likely has, by those before it; without any, keep the bounds."""
        for entry in entries:
            if not entry.exact and self._tokens_per_byte is not None:
                entry.tokens = min(entry.tokens, math.ceil(entry.size * self._tokens_per_byte))

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
        return replace(limits, tokens=max(1, min(tokens, limits.tokens)))


class Returns:
    """Learns how soon the callers of a micro-batch come back, each with its next text."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._answered_at = 0.0
        self._out = 0

    def answered(self, texts: int, now: float) -> None:
        """Take note that callers were answered, with `texts` texts in total, at `now`."""
        if self._out > 0:  # those of the last time are not back yet
            self._seconds = _smoothed(self._seconds, now - self._answered_at)
        self._answered_at, self._out = now, texts

    def came(self, texts: int, now: float) -> None:
        """Take note that interactive texts came."""
        if self._out > 0:
            self._out -= texts
            if self._out <= 0:
                self._seconds = _smoothed(self._seconds, now - self._answered_at)

    def patience(self, batch_seconds: float) -> float:
        """Return the most seconds that the next micro-batch waits for the callers of the last one.

        Args:
            batch_seconds: The time of the last micro-batch.
        """
        if self._seconds is None or self._seconds > _RETURN_SHARE * batch_seconds:
            return _GATHERING  # for callers that have no next text, a longer wait would be in vain
        return max(_GATHERING, _RETURN_SPREAD * self._seconds)


def _smoothed(value: float | None, newest: float) -> float:
    return newest if value is None else (1 - _WEIGHT) * value + _WEIGHT * newest
