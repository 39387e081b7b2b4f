"""The progress bars show the true progress."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    words = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.screen)
    assert shown.returncode == 0
    assert "✓ downloading" in words
    assert "✓ quantizing 0" not in words
    assert "✓ quantizing 2" in words


FULL = """
import sys, time
from runed.cli.progress import ProgressDisplay
with ProgressDisplay(keep=True) as display:
    display.update("model", 5_000_000, 5_000_000)
    time.sleep(0.5)
    {ending}
"""


def test_a_full_bar_has_no_mark_before_the_end_of_its_step(home: Path) -> None:
    """Such as a download whose hash is compared."""
    interrupted = Cli(home).run_on_terminal(program=write_program(home, FULL.format(ending="raise KeyboardInterrupt")))
    assert "5.0/5.0 MB" in interrupted.screen
    assert "✓" not in interrupted.screen
    assert "✓" in Cli(home).run_on_terminal(program=write_program(home, FULL.format(ending=""))).screen


LONG = """
import time
from runed.cli.progress import ProgressDisplay
with ProgressDisplay(keep=True) as display:
    display.update("model", 400_000, 800_000, detail="waiting for process 1234567, which installs all: " + "x" * 40)
    time.sleep(0.3)
    display.update("model", 800_000, 800_000)
"""


def test_a_long_sentence_cuts_off_no_figure(home: Path) -> None:
    shown = Cli(home).run_on_terminal(program=write_program(home, LONG))
    words = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.screen)
    assert "0.4/0.8 MB" in words
    assert "…" not in words


TIMELESS = """
import time
from runed.cli.progress import ProgressDisplay
with ProgressDisplay(keep=True) as display:
    display.update("engine", detail="starting the engine")
    time.sleep(0.3)
"""


def test_work_without_bytes_has_no_time_that_is_left(home: Path) -> None:
    shown = Cli(home).run_on_terminal(program=write_program(home, TIMELESS))
    assert "starting the engine" in shown.screen
    assert not re.search(r"[-\d]:[-\d]{2}:[-\d]{2}", shown.screen)


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def test_bars_have_one_colour_that_fits_light_and_dark_and_none_if_nobody_wants_it(home: Path) -> None:
    program = write_program(home, RATE)
    shown = Cli(home).run_on_terminal(program=program)
    assert set(COLOUR.findall(shown.screen)) == {"\x1b[32m"}
    plain = Cli(home).with_environment(NO_COLOR="1").run_on_terminal(program=program)
    assert not COLOUR.search(plain.screen)


AGAIN = """
import time
from runed.cli import progress
progress._NUMBERS_SECONDS = 0.5
with progress.ProgressDisplay() as display:
    for number in range(11):
        display.update("model", detail=f"no answer; trying again in {number // 2} s")
        time.sleep(0.2)
    display.update("model", detail="the model is there")
"""


def test_without_a_terminal_lines_of_which_only_numbers_are_new_come_now_and_then(home: Path) -> None:
    done = subprocess.run([write_program(home, AGAIN)], capture_output=True, text=True, check=True)
    first, *between, last = done.stderr.splitlines()
    assert (first, last) == ("runed: no answer; trying again in 0 s", "runed: the model is there")
    assert 2 <= len(between) <= 4
    assert len(set(between)) == len(between)


JOB = """
import time
from runed.cli import progress
progress._TEXTS_SECONDS = 1.0
with progress.ProgressDisplay({wanted}) as display:
    for number in range(0, 2501, 10):
        display.update("embedding", number, 5000, unit="texts")
        time.sleep(0.01)
"""


def test_without_a_terminal_a_job_tells_now_and_then_how_far_it_is(home: Path) -> None:
    done = subprocess.run([write_program(home, JOB.format(wanted=""))], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"runed: embedding: [\d,]+ of 5,000 texts \(\d+%\), [\d,.]+/s, 0:\d\d:\d\d left", line), line


STANDING = """
import time
from runed.cli import progress
progress._TEXTS_SECONDS = 0.5
with progress.ProgressDisplay() as display:
    display.update("embedding", 0, 5000, unit="texts")
    time.sleep(3)
time.sleep(1)
"""


def test_without_a_terminal_a_job_is_told_of_while_no_text_is_done_and_never_after_its_end(home: Path) -> None:
    done = subprocess.run([write_program(home, STANDING)], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 6
    assert set(lines) == {"runed: embedding: 0 of 5,000 texts (0%)"}


@pytest.mark.parametrize(("wanted", "variable"), [("wanted=False", "1"), ("", "0")])
def test_progress_that_nobody_wants_is_not_shown(home: Path, wanted: str, variable: str) -> None:
    program = write_program(home, JOB.format(wanted=wanted))
    shown = Cli(home).with_environment(RUNED_PROGRESS=variable).run_on_terminal(program=program)
    assert (shown.returncode, shown.screen) == (0, "")
