"""Orders the texts of one bulk call so that micro-batches are full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runed.backends.base import BatchLimits
from runed.scheduling.queue import QueueEntry


@dataclass(slots=True)
class _Batch:
    left: int
    entries: list[QueueEntry] = field(default_factory=list)


def pack(entries: Sequence[QueueEntry], limits: BatchLimits) -> list[QueueEntry]:
    """Order entries so that micro-batches taken from the front are full (best fit, longest first).

    The time of a micro-batch grows more slowly than its tokens (Qwen3-0.6B, q6_K: 17 tokens 201 ms, 60 tokens about 320).

    Args:
        entries: The entries.
        limits: The limits of a micro-batch.

    Returns:
        The same entries.
    """
    batches: list[_Batch] = []
    by_room: list[list[_Batch]] = [[] for _ in range(limits.tokens + 1)]
    for entry in sorted(entries, key=lambda entry: entry.tokens, reverse=True):
        fitting = next((room for room in by_room[entry.tokens :] if room), None)
        if fitting is None:
            batch = _Batch(limits.tokens)
            batches.append(batch)
        else:
            batch = fitting.pop()
        batch.entries.append(entry)
        batch.left -= entry.tokens
        if batch.left > 0 and len(batch.entries) < limits.texts:
            by_room[batch.left].append(batch)
    return [entry for batch in batches for entry in batch.entries]
