"""A short run of chaos. Times are told, not judged: the machine may be busy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.clients import raised
from tests.chaos.faults import FAULTS
from tests.chaos.run import run_chaos
from tests.conformance.drivers import Drivers

QUICK = {
    *(
        "kill the daemon",
        "SIGTERM to the daemon",
        "freeze the daemon for a while",
        "kill the engine",
        "SIGTERM to a busy engine",
    ),
    *("kill the clients", "remove the socket", "spoil the state files", "fill the queue", "kill the daemon, start eight"),
}
"""Faults of the short run, by name: one of each kind."""


@pytest.mark.slow
def test_ten_seconds_of_chaos_break_no_promise(llama_server: Path, drivers: Drivers) -> None:
    faults = [fault for fault in FAULTS if fault.name in QUICK]
    assert len(faults) == len(QUICK)
    report = run_chaos(1, 10.0, drivers, faults=faults, judge_times=False)
    assert not report.violations, "\n".join(report.lines())
    assert report.vectors
    assert report.healed


@pytest.mark.parametrize(
    ("said", "exception"),
    [
        ("", "nothing"),
        ("runed: the disk is full", "nothing"),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1\n    1 / 0\nZeroDivisionError: zero',
            "ZeroDivisionError: zero",
        ),
        (
            """Traceback (most recent call last):
  File "a"
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b"
runed.errors.DaemonStartError: its log ends with:
runed: no disk""",
            "runed.errors.DaemonStartError: its log ends with:",
        ),
    ],
)
def test_the_exception_that_ended_a_program_is_found(said: str, exception: str) -> None:
    assert raised(said) == exception
