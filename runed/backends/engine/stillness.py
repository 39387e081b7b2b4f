"""Measures for how long a child has done no work."""

from __future__ import annotations

import time

from runed.backends.engine.process import ChildProcess


class Stillness:
    """The time without work of one child, by looks at it.

    Work is processor time of the main thread, output, or a thread that runs or waits for a processor or a disk. So a slow
    machine does not look like a hang.

    Args:
        child: The child.
        look: Seconds between two looks. A longer time counts only as twice this time: this process itself did not run then,
            because it was stopped or the machine slept, and the child may not have run either.
    """

    def __init__(self, child: ChildProcess, *, look: float) -> None:
        self._child = child
        self._longest = 2 * look
        self._seen: tuple[float, int] | None = None
        self._descendants: float | None = None
        self._looked = time.monotonic()
        self._seconds = 0.0

    def look(self, *, answering: bool = False) -> float:
        """Look at the child. Return the seconds without work up to now.

        Args:
            answering: Whether the child has answered something since the last look. Then a thread that is not the main one may
                just answer again, so that it is no sign of work. Where answers come, the main thread gets a processor, too.
        """
        now = time.monotonic()
        self._seconds += min(now - self._looked, self._longest)
        self._looked = now
        if self._has_worked() or self._child.wants_to_work(main=answering):
            self._seconds = 0.0
        return self._seconds

    def restart(self) -> None:
        """Count from now on."""
        self._looked = time.monotonic()
        self._seconds = 0.0

    def _has_worked(self) -> bool:
        before, self._seen = self._seen, self._child.progress()
        if before != self._seen:
            return True
        # The child may be a script that waits while its own child does the work.
        earlier, self._descendants = self._descendants, self._child.progress_of_descendants()
        return earlier is not None and earlier != self._descendants
