"""The policy for downloads: when one is tried again, and how long it may stall."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """The patience of a download.

    Only failures that may pass are tried again: connection errors, stalls, and the statuses 408, 429 and 5xx.

    Attributes:
        attempts: The number of attempts in a row.
        worthwhile: The number of new bytes in these attempts after which as many more follow.
        first_wait: Seconds before the second attempt, plus up to as much by chance; each further wait is twice as long.
        max_wait: The longest of these waits in seconds.
        max_retry_after: The longest wait in seconds that a server may ask for by Retry-After.
        connect_timeout: Seconds for a connection to be made.
        stall_timeout: Seconds without any byte after which a connection counts as broken.
    """

    attempts: int = 6
    worthwhile: int = 1024 * 1024
    first_wait: float = 0.5
    max_wait: float = 30.0
    max_retry_after: float = 120.0
    connect_timeout: float = 15.0
    stall_timeout: float = 30.0


QUICK_LOOK = DownloadPolicy(attempts=1, connect_timeout=3.0, stall_timeout=3.0)
"""Policy for the manifest when everything that it named last time is installed."""
