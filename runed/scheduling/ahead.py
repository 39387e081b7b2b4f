"""Counts waiting texts during a micro-batch in flight, so that more of them fit into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from runed.scheduling.counting import count
from runed.scheduling.line import Line
from runed.scheduling.queue import FairQueue, QueueEntry


class AheadCounter:
    """Counts the texts of all models, those of one model at a time.

    Args:
        queue: The waiting texts.
        lines: The line of each model.
    """

    def __init__(self, queue: FairQueue, lines: Mapping[str, Line]) -> None:
        self._queue = queue
        self._lines = lines
        self._task: asyncio.Task[object] | None = None

    def begin(self) -> None:
        """Begin to count, unless it goes on already or there is nothing to count."""
        if self._task is None and (entries := self._uncounted()):
            self._task = self._lines[entries[0].model].spawn(self._count())
            self._task.add_done_callback(self._ended)

    async def _count(self) -> None:
        while entries := self._uncounted():
            if not await count(entries, self._lines[entries[0].model].backend):
                break  # otherwise a backend that cannot count would be asked again and again

    def _uncounted(self) -> list[QueueEntry]:
        # Only with an engine that works: counting must not start one.
        limits = {model: line.backend.limits for model, line in self._lines.items() if line.flights}
        exact = {model: limit for model, limit in limits.items() if not limit.by_estimate}
        return self._queue.uncounted(exact) if exact else []

    def _ended(self, _: object) -> None:
        self._task = None
