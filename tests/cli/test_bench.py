"""`runed bench` with the real daemon, engine and model: its output, the profile it keeps, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli.support import Cli, interrupt
from tests.support import wait_until


def engines(pid: int) -> list[psutil.Process]:
    """Return the engines that are children of a process."""
    try:
        return [child for child in psutil.Process(pid).children() if "--parallel" in child.cmdline()]
    except psutil.Error:  # one that ended just now
        return []


def test_bench_as_json(served: Cli) -> None:
    done = served.run("bench", "--json", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert 0 < document["short_text_p50"] <= document["short_text_p99"] < 10
    assert 0 < document["cached_text_p50"] < document["short_text_p99"]
    assert document["texts"] >= 1
    # Twelve words have twelve tokens at least, and the special one.
    assert document["tokens_per_second"] >= 13 * document["texts_per_second"] > 0
    assert document["model_identity"].startswith("sha256:")
    assert document["profile"] == "balanced"


def test_bench_for_people(served: Cli) -> None:
    done = served.run("bench", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    title, alone, cached, bulk = done.stdout.splitlines()
    assert "profile balanced" in title
    assert re.fullmatch(r"one short text +p50 [0-9.,]+ ms +p99 [0-9.,]+ ms *", alone)
    assert re.fullmatch(r"a cached text +p50 [0-9.,]+ ms *", cached)
    assert re.fullmatch(r"\d+ texts at once +[0-9.,]+ texts/s +[0-9.,]+ tokens/s *", bulk)


def test_tune_leaves_the_daemon_alone_and_its_next_start_runs_by_the_result(cli: Cli) -> None:
    assert cli.run("embed", "a text").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    (engine,) = engines(daemon.pid)

    done = cli.run("bench", "--tune", "--seconds", "0.02", "--force")
    assert done.returncode == 0, done.stderr
    assert cli.daemon() == daemon
    assert engines(daemon.pid) == [engine]
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["texts", "tokens", "threads"]
    assert any("memory" in row for row in rows)
    assert any(row.startswith("tokens at once") for row in rows)
    assert str(cli.paths.tuning) in done.stdout
    assert "runed stop" in done.stdout

    document = json.loads(cli.paths.tuning.read_text())
    (tuning,) = document["tunings"].values()
    for profile in tuning["profiles"]:
        profile["slots"] = {"memory": 1, "balanced": 5, "throughput": 6}[profile["name"]]
    cli.paths.tuning.write_text(json.dumps(document))
    cli.stop()
    done = cli.with_environment(RUNED_CACHE_SIZE="0").run("bench", "--json", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cached_text_p50"] is None
    daemon = cli.daemon()
    assert daemon is not None
    (engine,) = engines(daemon.pid)
    command = engine.cmdline()
    assert command[command.index("--parallel") + 1] == "5"
    status = cli.run("status").stdout
    assert f"profile balanced as tuned at {tuning['measured_at']}" in status

    for words in ("removed", "nothing to remove"):
        done = cli.run("bench", "--reset")
        assert (done.returncode, done.stderr.startswith(words) or done.stdout.startswith(words)) == (0, True)
    cli.stop()
    assert cli.run("embed", "a text").returncode == 0
    assert "tuned" not in cli.run("status").stdout


@pytest.mark.slow
def test_a_tuning_that_is_not_kept_is_a_failure(cli: Cli) -> None:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        # Each of the many starts of the engine shares the processors with the burners.
        done = cli.run("bench", "--tune", "--seconds", "0.02", timeout=180)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert done.returncode == 1
    assert done.stderr.endswith("runed: the result is not kept; with --force it is\n")
    assert "measure again when the machine is quiet" in done.stderr
    assert not cli.paths.tuning.exists()


def test_ctrl_c_while_tuning_leaves_nothing_behind(cli: Cli) -> None:
    temporary = cli.home / "tmp"
    temporary.mkdir()
    process = cli.with_environment(TMPDIR=str(temporary)).start("bench", "--tune", "--json")
    (engine,) = wait_until(lambda: engines(process.pid), what="the engine")
    assert [each.name[:12] for each in temporary.iterdir()] == ["runed-bench-"]
    code, output, errors = interrupt(process)
    assert (code, output) == (130, "")
    assert "Traceback" not in errors
    assert not engine.is_running()
    assert list(temporary.iterdir()) == []
    assert not cli.paths.tuning.exists()
    assert cli.daemon() is None


def test_tune_without_a_model_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    done = cli.with_environment(RUNED_MODEL=str(tmp_path / "none.gguf")).run("bench", "--tune")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_seconds_must_be_a_duration(cli: Cli) -> None:
    done = cli.run("bench", "--seconds", "0")
    assert done.returncode == 2
    assert "not a number of seconds above 0" in done.stderr
    assert list(cli.home.iterdir()) == []
