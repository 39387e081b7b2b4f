"""`runed stop` tells who works with the daemon, and `--for` keeps it stopped for all clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import runed
from runed.errors import KeptStoppedError
from tests.cli.support import Cli

CLIENT = """
import runed, sys
with runed.connect(spawn=False) as client:
    client.health()
    print("connected", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_program(cli: Cli, folder: Path) -> Iterator[int]:
    """Let a program keep a connection to the daemon; its pid."""
    program = folder / "indexer.py"
    program.write_text(CLIENT)
    with subprocess.Popen(
        [sys.executable, program], env=cli.environment_of_a_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"connected\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def open_home(cli: Cli) -> Iterator[Cli]:
    yield cli
    cli.paths.hold.unlink(missing_ok=True)


def test_stop_names_the_programs_that_will_start_it_again(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("ensure").returncode == 0
    with another_program(cli, tmp_path) as pid:
        done = cli.run("stop")
    assert done.returncode == 0
    assert f"1 other program is connected: {Path(sys.executable).resolve().name}"[:34] in done.stderr
    assert f"indexer.py (pid {pid})" in done.stderr
    assert "`runed stop --for 10m` would keep it stopped" in done.stderr


def test_stop_for_programs(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("ensure").returncode == 0
    with another_program(cli, tmp_path) as pid:
        document = json.loads(cli.run("stop", "--json").stdout)
    assert document["stopped"] is True
    assert [client["pid"] for client in document["clients"]] == [pid]
    assert "kept_stopped_seconds" not in document
    assert json.loads(cli.run("stop", "--json").stdout)["stopped"] is False


def test_a_daemon_that_is_kept_stopped_is_started_by_no_client(open_home: Cli) -> None:
    cli = open_home
    assert cli.run("ensure").returncode == 0
    done = cli.run("stop", "--for", "10m")
    assert done.returncode == 0
    assert "nobody starts it until " in done.stdout
    for arguments in (["embed", "x"], ["ensure"], ["serve"], ["bench", "--seconds", "1"]):
        refused = cli.run(*arguments)
        assert refused.returncode == 1, arguments
        assert "keeps the daemon of" in refused.stderr
        assert "runed ensure --anyway" in refused.stderr
    error = json.loads(cli.run("ensure", "--json").stdout)["error"]
    assert error["reason"] == "KEPT_STOPPED"
    with pytest.raises(KeptStoppedError):
        runed.connect(home=cli.home)
    shown = cli.run("status")
    assert shown.returncode == 3
    assert "keeps it so until" in shown.stdout
    assert 500 < json.loads(cli.run("status", "--json").stdout)["kept_stopped_seconds"] <= 600
    assert cli.daemon() is None
    assert cli.run("ensure", "--anyway").returncode == 0
    assert not cli.paths.hold.exists()
    assert cli.run("embed", "x").returncode == 0


def test_it_is_kept_stopped_without_a_daemon_and_without_a_home(open_home: Cli) -> None:
    cli = Cli(open_home.home / "new", open_home.environment)
    done = cli.run("stop", "--for", "1h")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"no daemon runs for {cli.home}")
    assert cli.run("ensure").returncode == 1


@pytest.mark.parametrize("value", ["0", "-5m", "soon", "10"])
def test_a_time_that_is_none_is_refused(open_home: Cli, value: str) -> None:
    done = open_home.run("stop", f"--for={value}")
    assert done.returncode == 2
    assert "such as 90s, 10m or 1h30m" in done.stderr
    assert list(open_home.home.iterdir()) == []


def test_a_time_of_months_is_refused(open_home: Cli) -> None:
    done = open_home.run("stop", "--for", "721h")
    assert done.returncode == 2
    assert "'721h' is more than 720h" in done.stderr


def test_a_mistake_in_a_setting_keeps_no_daemon_from_being_seen_and_stopped(cli: Cli) -> None:
    assert cli.run("embed", "x").returncode == 0
    (cli.paths.home / "config.json").write_text('{"idle_timeout": 10}')
    mistake = 'idle_timeout = 10: accepted is text in double quotes, such as "10m"'
    assert cli.run("embed", "x").returncode == 2
    for command in ("status", "logs", "stop"):
        done = cli.with_environment(RUNED_CTX_SIZE="many").run(command)
        assert done.returncode == 0, done.stderr
        assert mistake in done.stderr or "RUNED_CTX_SIZE='many'" in done.stderr
    assert not cli.paths.daemon_record.exists()
