"""When a download is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """How patient a download is; tests make it impatient.

    Only what can pass is tried again: connection errors, stalls, and the statuses 408, 429 and 5xx.

    Attributes:
        attempts: How many attempts are made in a row.
        worthwhile: How many new bytes these must have brought for as many more to follow.
        first_wait: Seconds before the second attempt, plus a random part of as much; each further wait is twice as long.
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
"""For what can be done without: the manifest, when everything it named last time is installed."""
