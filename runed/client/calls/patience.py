"""The deadline of a call, and the pauses between the tries of a call that was refused for the moment."""

from __future__ import annotations

import random
import time

from runed.errors import DeadlineExceededError, InvalidRequestError, RunedError

MAX_PATIENCE = 60.0
"""Seconds for which a call without a deadline is tried again, counted from its first refusal."""

_MOST_SECONDS = 1_000_000_000
"""The most seconds of a deadline, 31 years. The system waits for 292 years at most."""

_GROWTH = 1.5
"""Factor of a pause to the one before it, on average."""

_SHORTEST = 0.05
"""Shortest pause in seconds, before the jitter."""

_LONGEST = 10.0
"""Longest pause in seconds, before the jitter. A pause is longer only if the daemon tells a longer time."""


class Deadline:
    """The end of the time that a call may take, including waiting.

    Args:
        timeout: Seconds from now on; None means no limit.
        what: The beginning of the error of a call whose time is over.

    Raises:
        InvalidRequestError: This is no number of seconds, or more than the system waits for.
    """

    def __init__(self, timeout: float | None, what: str = "the call did not succeed") -> None:
        if timeout is not None and not timeout <= _MOST_SECONDS:  # nor NaN
            raise InvalidRequestError(f"timeout is {timeout:g}; give at most {_MOST_SECONDS:,} seconds, or None for no limit")
        self.timeout = timeout
        self._what = what
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds that remain; None means no limit.

        Raises:
            DeadlineExceededError: None remain.
        """
        if (seconds := self.left()) is not None and seconds <= 0:
            raise self.exceeded()
        return seconds

    def left(self) -> float | None:
        """Return the seconds that remain, a negative number when the time is over; None means no limit."""
        return None if self._end is None else self._end - time.monotonic()

    def restart(self) -> None:
        """Begin again, with the whole time."""
        if self.timeout is not None:
            self._end = time.monotonic() + self.timeout

    def exceeded(self) -> DeadlineExceededError:
        """Return the error of a call whose time is over."""
        return DeadlineExceededError(f"{self._what} within {self.timeout:g} s; give it more time, or send less at once")


class Patience:
    """The pauses of one call between its tries.

    The daemon tells when another try can help. A caller waits half to one and a half times this time, so that callers that were
    refused together do not call again together. Each pause is longer than the one before.

    Args:
        deadline: The end of the call. Without a limit the call is tried for `MAX_PATIENCE` from the first refusal on.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self.reset()

    def reset(self) -> None:
        """Start anew, after a try that made progress."""
        self._began: float | None = None
        self._refusals = 0
        self._last: RunedError | None = None

    def pause(self, error: RunedError) -> float:
        """Return the seconds to wait before the next try.

        Args:
            error: The reason why the last try was refused.

        Raises:
            RunedError: `error`, extended by the tries so far: another try would not help, or would come too late.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._refusals += 1
        self._last = error
        if error.retry_after is None:
            raise self._given_up(error, self._refusals)
        told = max(error.retry_after, _SHORTEST)
        grown = min(told * _GROWTH ** (self._refusals - 1), max(told, _LONGEST))
        seconds = grown * random.uniform(0.5, 1.5)  # noqa: S311 # it spreads callers, it keeps no secret
        left = self._deadline.left()
        if seconds >= (self._began + MAX_PATIENCE - now if left is None else left):
            raise self._given_up(error, self._refusals)
        return seconds

    @property
    def last_refusal(self) -> RunedError | None:
        """The refusal of the last try but one, for a call whose time ended in the middle of a try; None without a refusal."""
        return None if self._last is None else self._given_up(self._last, self._refusals + 1)

    def _given_up(self, error: RunedError, tries: int) -> RunedError:
        if tries == 1 or self._began is None:
            return error
        tried = f"tried {tries} times in {time.monotonic() - self._began:.1f} s"
        extended = type(error)(f"{error.message} ({tried})", metadata=error.metadata, retry_after=error.retry_after)
        extended.reason = error.reason
        return extended
