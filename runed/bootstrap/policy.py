"""The policy for downloads: the number and the times of tries, and the longest stall."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """The patience of a download.

    Only temporary failures are tried again: connection errors, stalls, and the statuses 408, 429 and 5xx.

    Attributes:
        attempts: The number of attempts in a row.
        worthwhile: The number of new bytes in these attempts after which the count of attempts begins again.
        first_wait: Seconds before the second attempt, plus a random time of up to the same length. Each further wait is twice
            as long.
        max_wait: The longest of these waits in seconds.
        max_retry_after: The longest wait in seconds that a server may ask for by Retry-After.
        connect_timeout: Seconds for a connection to be made.
        stall_timeout: Seconds without any byte after which a connection counts as broken.
        slow_window: Seconds over which the speed of an answer is measured.
        slow_bytes: The bytes that must come in each of these times. With fewer, the connection counts as broken.
    """

    attempts: int = 6
    worthwhile: int = 1024 * 1024
    first_wait: float = 0.5
    max_wait: float = 30.0
    max_retry_after: float = 120.0
    connect_timeout: float = 15.0
    stall_timeout: float = 30.0
    slow_window: float = 60.0
    slow_bytes: int = 60 * 1024


QUICK_LOOK = DownloadPolicy(attempts=1, connect_timeout=3.0, stall_timeout=3.0, slow_window=3.0, slow_bytes=3 * 1024)
"""Policy for the manifest when everything that it named last time is installed."""
