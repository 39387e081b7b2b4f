"""The last hour of the daemon: plain data between the daemon, which remembers it, and the faces, which show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SLOT_SECONDS = 10
"""Seconds of a slot."""

SLOTS = 360
"""Slots that are remembered."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The numbers of `SLOT_SECONDS`.

    Attributes:
        number: The time of the slot: its start on a clock that only grows, in units of `SLOT_SECONDS`.
        texts: Texts that were answered with a vector, including those from the cache.
        tokens: Tokens that were computed.
        calls: Calls that ended, apart from streams.
        errors: Calls that failed, and single texts.
        p50_seconds: The median time of these calls; 0 if there was none.
        p99_seconds: The 99th percentile of the time of these calls.
        queued: Texts that waited at the end of the slot.
        engine_bytes: The memory that was counted for all engines at the end of the slot.
    """

    number: int
    texts: int
    tokens: int
    calls: int
    errors: int
    p50_seconds: float
    p99_seconds: float
    queued: int
    engine_bytes: int


@dataclass(slots=True)
class Work:
    """A call that is being served.

    Attributes:
        kind: "batch", "stream" or "rerank".
        client: The name of the caller's connection.
        began: The time when it began, in seconds of the monotonic clock.
        texts: The number of its texts; for a stream, of those that were answered so far.
        model: The full name of its model; "" while that is being looked for.
    """

    kind: str
    client: str
    began: float
    texts: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The calls, and the single texts, that failed for one reason since the daemon started. There is no message.

    Attributes:
        reason: The reason.
        times: Their number.
        last_at: The time of the last one, in seconds since 1970.
    """

    reason: str
    times: int
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LastHour:
    """What the daemon remembers.

    Attributes:
        born: The time when the daemon began to remember, in seconds since 1970. Another daemon has another one.
        now: The number of the present slot, which is not among `slots`.
        slots: The slots in which something changed, the oldest first. The others had no call, and the memory of the one before.
        works: The calls that are being served, the oldest first.
        failures: The reasons of failures, the last one first.
    """

    born: float = 0.0
    now: int = 0
    slots: Sequence[Slot] = field(default=())
    works: Sequence[Work] = field(default=())
    failures: Sequence[Failure] = field(default=())
