"""Puts the texts of one bulk call into an order in which micro-batches come out full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runed.backends.base import BatchLimits
from runed.scheduling.queue import Job


@dataclass(slots=True)
class _Batch:
    left: int
    jobs: list[Job] = field(default_factory=list)


def pack(jobs: Sequence[Job], limits: BatchLimits) -> list[Job]:
    """Order jobs so that who takes them from the front, as many as fit, takes full micro-batches (best fit, longest first).

    The time of a micro-batch grows more slowly than its tokens (Qwen3-0.6B, q6_K: 17 tokens 201 ms, 60 tokens about 320).

    Args:
        jobs: The jobs.
        limits: What a micro-batch may hold.

    Returns:
        The same jobs.
    """
    batches: list[_Batch] = []
    by_room: list[list[_Batch]] = [[] for _ in range(limits.tokens + 1)]
    for job in sorted(jobs, key=lambda job: job.tokens, reverse=True):
        fitting = next((room for room in by_room[job.tokens :] if room), None)
        if fitting is None:
            batch = _Batch(limits.tokens)
            batches.append(batch)
        else:
            batch = fitting.pop()
        batch.jobs.append(job)
        batch.left -= job.tokens
        if batch.left > 0 and len(batch.jobs) < limits.texts:
            by_room[batch.left].append(batch)
    return [job for batch in batches for job in batch.jobs]
