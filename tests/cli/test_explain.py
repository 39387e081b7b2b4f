"""`runed explain` tells the meaning of each reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runed.reasons import REASONS
from tests.cli.support import Cli


@pytest.fixture
def bare(home: Path) -> Cli:
    return Cli(home)


def test_without_a_reason_all_are_listed(bare: Cli) -> None:
    done = bare.run("explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [reason.name for reason in REASONS]


def test_a_reason_is_told_with_its_remedy(bare: Cli) -> None:
    done = bare.run("explain", "kept-stopped")
    assert done.returncode == 0
    assert done.stdout.startswith("KEPT_STOPPED\n")
    assert "runed ensure --anyway" in done.stdout
    [row] = json.loads(bare.run("explain", "--json", "kept_stopped").stdout)
    assert row["name"] == "KEPT_STOPPED"
    assert row["code"] == ""


def test_a_slip_of_the_pen_gets_a_suggestion(bare: Cli) -> None:
    done = bare.run("explain", "QUEUEFULL")
    assert done.returncode == 2
    assert "did you mean QUEUE_FULL?" in done.stderr
    assert "lists all" in bare.run("explain", "zzz").stderr


def test_an_error_on_a_terminal_names_the_way_to_more(home: Path) -> None:
    (home / "file").write_text("")
    wrong = Cli(home / "file")
    shown = wrong.run_on_terminal("ensure")
    assert shown.returncode == 1
    assert "(see `runed explain FOREIGN_PATH`)" in " ".join(shown.screen.split())
    assert "explain" not in wrong.run("ensure").stderr
