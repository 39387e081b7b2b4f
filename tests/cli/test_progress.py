"""The progress bars show the true progress."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.cli.support import Cli

STEPS = """
import time
from runed.cli.progress import ProgressDisplay
with ProgressDisplay(keep=True) as display:
    display.update("model", 5, 5, detail="downloading")
    for number in range(3):
        display.update("model", 0, 0, detail=f"quantizing {number}")
        time.sleep(0.15)
"""


RATE = """
import time
from runed.cli.progress import ProgressDisplay
with ProgressDisplay(keep=True) as display:
    for number in range(0, 5001, 1000):
        display.update("embedding", number, 5000, unit="texts")
        time.sleep(0.1)
"""


def test_long_work_shows_its_rate(home: Path) -> None:
    shown = Cli(home).run_on_terminal(program=write_program(home, RATE))
    assert shown.returncode == 0
    assert "5,000/5,000 texts" in shown.screen
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"texts, ([\d,]+)/s", shown.screen)]
    assert rates
    assert all(1000 < rate <= 11_000 for rate in rates)


def write_program(home: Path, source: str) -> str:
    program = home / "steps"
    program.write_text(f"#!{sys.executable}\n{source}")
    program.chmod(0o700)
    return os.fspath(program)


def test_what_follows_a_full_bar_is_not_marked_as_done_before_it_is(home: Path) -> None:
    shown = Cli(home).run_on_terminal(program=write_program(home, STEPS))
    assert shown.returncode == 0
    assert "✓ downloading" in shown.screen
    assert "✓ quantizing 0" not in shown.screen
    assert "✓ quantizing 2" in shown.screen
