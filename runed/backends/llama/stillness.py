"""Measures for how long a child has done no work."""

from __future__ import annotations

import time

from runed.backends.llama.process import ChildProcess


class Stillness:
    """The time without work of one child, by looks at it.

    Work is processor time, output, waiting for a disk, or waiting for a processor: a slow machine must not look like a hang.

    Args:
        child: The child.
        look: Seconds between two looks. A longer time counts only as twice this time: this process itself did not run then,
            because it was stopped or the machine slept, and the child may not have run either.
    """

    def __init__(self, child: ChildProcess, *, look: float) -> None:
        self._child = child
        self._longest = 2 * look
        self._seen: dict[bool, tuple[float, int]] = {}
        self._looked = time.monotonic()
        self._seconds = 0.0

    def look(self) -> float:
        """Look at the child. Return the seconds without work up to now."""
        now = time.monotonic()
        self._seconds += min(now - self._looked, self._longest)
        self._looked = now
        if self._has_worked() or self._child.wants_to_work:
            self._seconds = 0.0
        return self._seconds

    def restart(self) -> None:
        """Count from now on."""
        self._looked = time.monotonic()
        self._seconds = 0.0

    def _has_worked(self) -> bool:
        for tree in (False, True):  # the child may be a script that waits while its own child does the work
            progress = self._child.progress(tree=tree)
            if progress != self._seen.get(tree):
                self._seen[tree] = progress
                return True
        return False
