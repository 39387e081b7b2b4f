"""Time limits of a backend for its engine, and the number of replacements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The limits of a backend's patience. All are in seconds, except `max_failures`.

    A running engine is looked at every `look` seconds. It is killed and replaced in two cases:

    1. Its socket refuses connections, or its main thread is in the handler of SIGTERM or SIGINT. After such a signal, a
       busy engine waits for ever.
    2. It owes an answer and does no work for `hang` seconds. Then it is asked to embed a short text, and for `probe` seconds it
       neither answers nor works. An engine that a signal has stopped is treated in the same way, also if it owes nothing.

    Work is processor time of the main thread, output, or a thread that runs or waits for a processor or a disk. Time in which
    this program did not run does not count, since the machine may have slept.

    Attributes:
        start_stall: A start is given up after this time without work.
        start_limit: A start is given up after this time, even if the engine works.
        term_grace: The time between SIGTERM and SIGKILL. A busy engine does not obey the first, and has no state to save.
        look: The time between two looks at the engine.
        hang: The time without work after which an engine is asked something.
        probe: The time without work after which an engine that was asked is hung.
        backoff: The pause before an engine that died is replaced. Each further failure doubles it; chance cuts up to half.
        backoff_limit: The longest of these pauses.
        max_failures: The number of failed starts, and of deaths while nobody waited for an answer, that makes the backend give
            up. An answer resets the count.
        pause: Requests are refused for this time after the backend gave up because of failed starts. The next request then
            starts an engine again.
    """

    start_stall: float = 60.0
    start_limit: float = 1800.0
    term_grace: float = 0.5
    look: float = 1.0
    hang: float = 12.0
    probe: float = 6.0
    backoff: float = 0.25
    backoff_limit: float = 10.0
    max_failures: int = 4
    pause: float = 15.0
