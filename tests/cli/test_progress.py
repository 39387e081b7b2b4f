"""The bars tell the truth."""

from __future__ import annotations

import os
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


def test_what_follows_a_full_bar_is_not_marked_as_done_before_it_is(home: Path) -> None:
    program = home / "steps"
    program.write_text(f"#!{sys.executable}\n{STEPS}")
    program.chmod(0o700)
    shown = Cli(home).run_on_terminal(program=os.fspath(program))
    assert shown.returncode == 0
    assert "✓ downloading" in shown.screen
    assert "✓ quantizing 0" not in shown.screen
    assert "✓ quantizing 2" in shown.screen
