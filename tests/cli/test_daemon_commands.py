"""The commands around a daemon's life: `serve`, `ensure`, `status`, `stop`, and `rundemo`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from runed.processes import is_alive
from runed.version import __version__
from tests.cli.support import Cli, finish, interrupt
from tests.support import wait_until


def status(cli: Cli) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cli.run("status", "--json").stdout)
    return document


# Nothing runs


def test_status_without_a_daemon_says_so_exits_3_and_starts_none(cli: Cli) -> None:
    done = cli.run("status")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith(f"no daemon runs for {cli.home}")
    assert list(cli.home.iterdir()) == []


def test_status_json_without_a_daemon_is_json(cli: Cli) -> None:
    done = cli.run("status", "--json")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout) == {
        "running": False,
        "socket": str(cli.paths.socket),
        "home": str(cli.home),
        "log": str(cli.paths.daemon_log),
    }


def test_stop_without_a_daemon_says_so_and_is_no_failure(cli: Cli) -> None:
    done = cli.run("stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"no daemon runs for {cli.home}\n", "")
    assert list(cli.home.iterdir()) == []


def test_daemon_that_was_killed_is_none_although_socket_and_record_remain(cli: Cli) -> None:
    assert cli.run("ensure").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(daemon), what="the end of the daemon")
    assert cli.paths.socket.is_socket()
    assert cli.paths.daemon_record.exists()
    assert cli.run("status").returncode == 3
    assert cli.run("stop").stdout == f"no daemon runs for {cli.home}\n"


# A daemon runs


def test_status_tells_the_truth_about_daemon_and_engine(served: Cli) -> None:
    document = status(served)
    daemon = served.daemon()
    assert daemon is not None
    assert document["running"] is True
    assert document["status"] == "OK"
    assert document["phase"] is None
    assert document["pid"] == daemon.pid
    assert document["engine_pid"] > 0
    assert document["daemon_memory_bytes"] > 20_000_000
    assert document["engine_memory_bytes"] > 5_000_000
    assert document["total_requests"] > 0
    assert document["model_identity"].startswith("sha256:")
    assert document["vector_dim"] == 64
    assert document["daemon_version"] == __version__
    assert document["home"] == str(served.home)
    assert document["socket"] == str(served.paths.socket)


def test_status_for_people_fits_a_terminal_of_any_kind(served: Cli) -> None:
    done = served.run("status")
    document = status(served)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(" "))
    assert lines["state"] == "ok"
    assert document["model_identity"] in lines["model"]
    assert f"pid {document['engine_pid']}" in lines["engine"]
    assert f"pid {document['pid']}" in lines["daemon"]
    assert lines["socket"] == str(served.paths.socket)
    assert lines["log"] == str(served.paths.daemon_log)


def test_ensure_finds_the_daemon_that_runs(served: Cli) -> None:
    done = served.run("ensure", "--json")
    daemon = served.daemon()
    assert daemon is not None
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert json.loads(done.stdout) == {
        "socket": str(served.paths.socket),
        "pid": daemon.pid,
        "version": __version__,
        "started": False,
    }
    assert served.run("ensure").stdout.startswith("already running: ")


def test_second_serve_says_who_serves_and_exits_0(served: Cli) -> None:
    daemon = served.daemon()
    assert daemon is not None
    done = served.run()
    assert (done.returncode, done.stdout) == (0, "")
    assert f"pid {daemon.pid}" in done.stderr


def test_rundemo_ends_with_ok(served: Cli) -> None:
    done = served.run("hello", program="rundemo")
    document = status(served)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    values = dict(line.split(maxsplit=1) for line in lines)
    assert last == "OK"
    assert values["version"] == __version__
    assert values["identity"] == document["model_identity"]
    assert values["dimension"] == "64"
    assert values["norm"] == "1.000000"
    assert served.run(program="rundemo").returncode == 0


def test_rundemo_refuses_as_embed_does(served: Cli) -> None:
    done = served.run("  ", program="rundemo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("runed: the text is empty or only white space")
    assert served.run("two", "texts", program="rundemo").returncode == 2


def test_log_of_the_daemon_is_shown_without_any_text(served: Cli) -> None:
    assert served.run("embed", "a rather secret sentence").returncode == 0
    done = served.run("logs", "-n", "1000")
    assert done.returncode == 0
    assert all("message" in json.loads(line) for line in done.stdout.splitlines())
    assert "secret" not in done.stdout
    assert served.run("logs", "--engine").returncode == 0


# Starting


def test_simultaneous_ensures_start_one_daemon(cli: Cli) -> None:
    processes = [cli.start("ensure", "--json") for _ in range(4)]
    answers = [json.loads(finish(process)[1]) for process in processes]
    assert sum(answer["started"] for answer in answers) == 1
    assert len({answer["pid"] for answer in answers} - {None}) == 1
    assert is_alive(cli.daemon() or pytest.fail("there is no record"))


@pytest.mark.parametrize(("arguments", "ending"), [((), signal.SIGINT), (("serve",), signal.SIGTERM)])
def test_runed_alone_serves_in_the_foreground_until_a_signal(
    cli: Cli, arguments: tuple[str, ...], ending: signal.Signals
) -> None:
    process = cli.start(*arguments)
    wait_until(lambda: status(cli)["running"], what="the daemon")
    assert status(cli)["pid"] == process.pid
    process.send_signal(ending)
    code, output, errors = finish(process)
    assert (code, output) == (0, "")
    assert all(json.loads(line) for line in errors.splitlines())
    assert not cli.paths.socket.exists()


def test_daemon_that_ends_at_start_is_reported_with_its_last_words(cli: Cli, tmp_path: Path) -> None:
    program = tmp_path / "runed"
    program.write_text("#!/bin/sh\necho 'cannot find my libraries' >&2\nexit 7\n")
    program.chmod(0o755)
    cli.paths.config.write_text(json.dumps({"version": 1, "runed_binary": str(program)}))
    done = cli.run("ensure", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "DAEMON_START_FAILED"
    assert "exited with code 7" in error["message"]
    assert "cannot find my libraries" in error["message"]
    plain = cli.run("ensure")
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == f"runed: {error['message']}\n"
    assert cli.run("embed", "x").stderr == plain.stderr
    cli.paths.config.unlink()


def test_bad_setting_is_json_too_for_a_program_that_asked_for_it(cli: Cli) -> None:
    done = cli.with_environment(RUNED_CTX_SIZE="many").run("ensure", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["reason"] == "BAD_SETTING"


def test_home_that_is_a_file_is_refused_untouched(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.write_text("mine")
    elsewhere = Cli(path)
    done = elsewhere.run("ensure", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["reason"] == "FOREIGN_PATH"
    for command in (("embed", "x"), ("serve",), ("install",)):
        done = elsewhere.run(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
    assert path.read_text() == "mine"


def test_ctrl_c_while_waiting_for_the_first_start_ends_only_the_command(cli: Cli, tmp_path: Path) -> None:
    slow = tmp_path / "llama-server"
    slow.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'version: 1'\nexec sleep 60\n")
    slow.chmod(0o755)
    path = tmp_path / "out.json"
    process = cli.with_environment(RUNED_LLAMA_SERVER=str(slow)).start("embed", "x", "-o", str(path))
    wait_until(lambda: status(cli).get("phase") == "STARTING_LLAMA_SERVER", what="the start of the engine")
    code, output, errors = interrupt(process)
    assert (code, output) == (130, "")
    assert "Traceback" not in errors
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["llama-server"]
    assert status(cli)["running"] is True
    assert cli.run("status").stdout.startswith("state     loading, ")


# Stopping


def test_stop_waits_until_the_process_is_gone(cli: Cli) -> None:
    assert cli.run("embed", "x").returncode == 0
    daemon, engine = cli.daemon(), status(cli)["engine_pid"]
    assert daemon is not None
    done = cli.run("stop")
    assert not is_alive(daemon)
    assert not Path(f"/proc/{engine}").exists()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"stopped the daemon of {cli.home} after ")
    assert not cli.paths.socket.exists()
    assert cli.run("stop").stdout == f"no daemon runs for {cli.home}\n"


def test_status_does_not_wake_a_suspended_engine(cli: Cli) -> None:
    assert cli.with_environment(RUNED_IDLE_TIMEOUT="300ms").run("embed", "x").returncode == 0
    wait_until(lambda: status(cli)["status"] == "IDLE", what="the suspension")
    document = status(cli)
    assert (document["status"], document["engine_pid"], document["engine_memory_bytes"]) == ("IDLE", 0, 0)
    assert "not running" in cli.run("status").stdout
    assert cli.run("embed", "x").returncode == 0
