"""`runed doctor` on a home that works, and on one that does not."""

from __future__ import annotations

import json
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
    wrong = cli.with_environment(RUNED_CTX_SIZE="many").run("doctor")
    assert (wrong.returncode, "RUNED_CTX_SIZE" in wrong.stderr) == (2, True)
