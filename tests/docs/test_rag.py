"""Runs the Python program of docs/rag.md. The tests of the other two clients run theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import BLOCKS
from tests.support import RunningDaemon, clean_environment

QUESTION = "How hot is the water for green tea?"


def test_passages_of_a_folder_come_in_the_order_of_their_use(minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    [program] = [block.text for block in BLOCKS if block.page == "docs/rag.md" and block.language == "python"]
    (tmp_path / "drinks").mkdir()
    (tmp_path / "drinks" / "tea.md").write_text("Black tea takes boiling water.\n\n\n\nGreen tea is steeped at 80 degrees.\n")
    (tmp_path / "travel.md").write_text("The night train leaves at ten.\n\nTickets are sold on board.\n")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), QUESTION],
        env=clean_environment(RUNED_HOME=str(minilm_daemon.home)),
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    assert done.stdout.split("\n\n")[:3] == [
        f"Answer from these passages: {QUESTION}",
        "Green tea is steeped at 80 degrees.",
        "Black tea takes boiling water.",
    ]
