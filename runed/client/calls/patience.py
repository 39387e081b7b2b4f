"""How long a call may take, and when one that was refused for the moment is tried again."""

from __future__ import annotations

import random
import time

from runed.errors import DeadlineExceededError, RunedError

MAX_PATIENCE = 60.0
"""Seconds for which a call without a deadline is tried again in all."""

_GROWTH = 1.5
"""By how much each pause is longer than the one before, on average."""

_SHORTEST = 0.05
_LONGEST = 10.0
"""Limits of a pause in seconds, before the jitter; a longer time that the daemon tells is kept to."""


class Deadline:
    """The end of the time that a call may take, waiting included.

    Args:
        timeout: Seconds from now on; None means no limit.
        what: What has to happen in that time, for the error.
    """

    def __init__(self, timeout: float | None, what: str = "the call did not succeed") -> None:
        self.timeout = timeout
        self._what = what
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Give the seconds that remain; None means no limit.

        Raises:
            DeadlineExceededError: There are none.
        """
        if (seconds := self.left()) is not None and seconds <= 0:
            raise self.exceeded()
        return seconds

    def left(self) -> float | None:
        """Give the seconds that remain, as a negative number where the time is over; None means no limit."""
        return None if self._end is None else self._end - time.monotonic()

    def restart(self) -> None:
        """Begin again, with the whole time."""
        if self.timeout is not None:
            self._end = time.monotonic() + self.timeout

    def exceeded(self) -> DeadlineExceededError:
        """Describe the call whose time is over."""
        return DeadlineExceededError(f"{self._what} within {self.timeout:g} s; give it more time, or send less at once")


class Patience:
    """The pauses of one call between its tries.

    The daemon tells when trying again can help; each caller waits half to one and a half times as long, so that those who were
    refused together do not come back together, and longer each time.

    Args:
        deadline: The end of the call. Without a limit it is tried for `MAX_PATIENCE` from the first refusal on.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._began: float | None = None
        self._tries = 0

    def pause(self, error: RunedError) -> float:
        """Give the seconds to wait before the next try.

        Args:
            error: Why the last one was refused.

        Raises:
            RunedError: `error`, extended by how long was tried: another try is of no use or comes too late.
        """
        now = time.monotonic()
        if error.retry_after is None:
            raise self._given_up(error, now)
        if self._began is None:
            self._began = now
        told = max(error.retry_after, _SHORTEST)
        grown = min(told * _GROWTH**self._tries, max(told, _LONGEST))
        seconds = grown * random.uniform(0.5, 1.5)  # noqa: S311 # it spreads callers, it keeps no secret
        self._tries += 1
        left = self._deadline.left()
        if seconds >= (self._began + MAX_PATIENCE - now if left is None else left):
            raise self._given_up(error, now)
        return seconds

    def reset(self) -> None:
        """Begin again, after a try that brought the work forward."""
        self._began = None
        self._tries = 0

    def _given_up(self, error: RunedError, now: float) -> RunedError:
        if self._began is None or self._tries <= 1:
            return error
        tried = f"tried {self._tries} times in {now - self._began:.1f} s"
        extended = type(error)(f"{error.message} ({tried})", metadata=error.metadata, retry_after=error.retry_after)
        extended.reason = error.reason
        return extended
