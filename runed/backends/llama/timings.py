"""Time limits of a backend for its engine, and the number of replacements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The limits of a backend's patience. All are in seconds, except `max_failures`.

    A silent engine is replaced in three steps:

    1. It has owed an answer for `hang` seconds: its work is watched.
    2. It does no work for `hang` seconds: it is asked to embed a short text.
    3. It neither answers that text nor works for `hang` seconds: it is hung, so it is killed and replaced.

    Work is processor time or output.

    Attributes:
        start_stall: A start is given up after this time without work.
        start_limit: A start is given up after this time, even if the engine works.
        term_grace: The time between SIGTERM and SIGKILL.
        hang: The time of each of the three steps.
        backoff: The pause before an engine that died is replaced. Each further failure doubles it; chance cuts up to half.
        backoff_limit: The longest of these pauses.
        max_failures: The number of deaths and failed starts, without an answer between them, that makes the backend give up.
        pause: Requests are refused for this time after the backend gave up. The next request then starts an engine again.
    """

    start_stall: float = 60.0
    start_limit: float = 1800.0
    term_grace: float = 5.0
    hang: float = 20.0
    backoff: float = 0.25
    backoff_limit: float = 10.0
    max_failures: int = 4
    pause: float = 15.0
