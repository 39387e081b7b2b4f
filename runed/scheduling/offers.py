"""Which models a micro-batch may be taken of now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from runed.backends.base import BatchLimits
from runed.domain.requests import Lane
from runed.scheduling.line import Line
from runed.scheduling.queue import FairQueue


class Offers:
    """Looks which lines have room for a micro-batch of the texts that wait.

    Args:
        queue: The waiting texts.
        lines: The line of each model.
    """

    def __init__(self, queue: FairQueue, lines: Mapping[str, Line]) -> None:
        self._queue = queue
        self._lines = lines

    @property
    def is_single(self) -> bool:
        """Whether there is one model, whose engine is on this machine, so that one micro-batch is enough."""
        return len(self._lines) == 1 and not next(iter(self._lines.values())).is_remote

    def find(self, *, occupied: bool) -> dict[str, BatchLimits]:
        """Return the limits of a micro-batch of each model of which one can be taken.

        Args:
            occupied: Whether a micro-batch uses the processors of this machine, or is about to.
        """
        waiting = self._queue.models()
        return {
            model: line.backend.limits
            for model, line in self._lines.items()
            if model in waiting and (line.is_remote or not occupied) and line.has_room(self._lane(model))
        }

    def bulk(self, models: Iterable[str]) -> dict[str, BatchLimits] | None:
        """Return the limits of a bulk micro-batch of each model of which one can be taken; None if no bulk text waits."""
        if not self._queue.depth(Lane.BULK)[0]:
            return None
        return {model: self._bulk_limits(self._lines[model]) for model in models if self._lines[model].has_room(Lane.BULK)}

    def _lane(self, model: str) -> Lane:
        """Return the most urgent lane in which texts of a model wait."""
        return Lane.INTERACTIVE if self._queue.waiting(model, Lane.INTERACTIVE) else Lane.BULK

    def _bulk_limits(self, line: Line) -> BatchLimits:
        """Return the limits of a bulk micro-batch, for which interactive texts may have to wait."""
        limits = line.backend.limits
        if line.reserve:  # interactive texts wait for no bulk ones, and small micro-batches would cost a request each
            return limits
        sharing = [line] if line.is_remote else [other for other in self._lines.values() if not other.is_remote]
        return line.pace.bulk_limits(limits, [other.pace for other in sharing])
