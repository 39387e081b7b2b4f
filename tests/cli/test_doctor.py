"""`runed doctor` on a home that works, and on one that does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

from runed.doctor import CHECKS
from tests.cli.support import Cli


def test_the_command_on_a_home_that_works(served: Cli, tmp_path: Path) -> None:
    target = tmp_path / "report.tar.gz"
    done = served.run("doctor", "--bundle", str(target))
    assert done.returncode == 0, done.stdout
    assert f"wrote {target} with machine.json" in done.stderr
    lines = done.stdout.splitlines()
    assert {"ok", "warning", "->"} >= {text.split()[0] for text in lines}
    assert any(text.startswith("ok       daemon         it answers: ok") for text in lines)
    rows = json.loads(served.run("doctor", "--json", "--offline").stdout)
    assert {"check", "state", "detail", "remedy"} == set(rows[0])
    assert "network" not in {row["check"] for row in rows}
    assert len(rows) >= len(CHECKS) - 1


def test_the_command_on_a_home_that_does_not(home: Path, tmp_path: Path) -> None:
    cli = Cli(home, {"RUNED_LLAMA_SERVER": str(tmp_path / "none"), "RUNED_MODEL": str(tmp_path / "none.gguf")})
    done = cli.run("doctor")
    assert done.returncode == 1
    assert f"failed   engine         {tmp_path / 'none'} does not exist" in done.stdout
    assert "-> correct RUNED_LLAMA_SERVER" in done.stdout
    assert list(home.iterdir()) == [], "nothing is changed"


def test_a_mistake_in_a_setting_is_a_finding_beside_the_others(home: Path) -> None:
    wrong = Cli(home).with_environment(RUNED_CTX_SIZE="many").run("doctor", "--offline")
    assert (wrong.returncode, wrong.stderr) == (1, "")
    first, remedy, *others = wrong.stdout.splitlines()
    assert first.startswith("failed   settings       RUNED_CTX_SIZE='many': accepted is ")
    assert remedy.split(None, 1) == ["->", "correct it; the checks below go on without"]
    assert any(line.startswith("ok       disk ") for line in others)
    (home / "config.json").write_text("{")
    rows = json.loads(Cli(home).run("doctor", "--offline", "--json").stdout)
    assert (rows[0]["check"], rows[0]["state"], "config.json: line 1" in rows[0]["detail"]) == ("settings", "failed", True)


def test_an_archive_takes_the_place_of_nothing(home: Path, tmp_path: Path) -> None:
    cli = Cli(home)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("mine", "link", "pipe"):
        done = cli.run("doctor", "--offline", "--bundle", str(tmp_path / name))
        assert (done.returncode, done.stdout) == (2, "")
        assert "there is something already, and nothing is replaced" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
    assert cli.run("doctor", "--offline", "--bundle", "-").returncode == 2
    (tmp_path / "reports").mkdir()
    cli.run("doctor", "--offline", "--bundle", str(tmp_path / "reports"))
    assert [path.name.startswith("runed-doctor-2") for path in (tmp_path / "reports").iterdir()] == [True]
    assert len(list(tmp_path.iterdir())) == 4
