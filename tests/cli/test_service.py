"""`runed service` lets a real systemd start the daemon. In every order of events, a home has one daemon, which answers.

docs/service.md promises that, with these commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from tests.cli.support import Cli
from tests.support import LLAMA_SERVER_ALONE, http_over, process_gone, short_home, wait_until
from tests.user_manager import CannotRunError, UserManager, user_manager

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # many commands, each with a start of Python


@pytest.fixture(scope="module")
def manager() -> Iterator[UserManager]:
    try:
        with user_manager() as running:
            yield running
    except CannotRunError as error:
        pytest.skip(str(error))


@pytest.fixture
def user(manager: UserManager, home: Path) -> Iterator[Cli]:
    """A user with a systemd and an empty home. Their daemon finds no model, which is enough for calls such as Health."""
    without_model = {"RUNED_MODEL": str(home / "missing.gguf"), "RUNED_LLAMA_SERVER": "/bin/false"}
    cli = Cli(home, {**manager.variables, **without_model})
    yield cli
    cli.run("service", "remove")
    cli.stop()


def name_of(cli: Cli) -> str:
    """Return the name of the service of a home."""
    name: str = json.loads(cli.run("service", "status", "--json").stdout)["name"]
    return name


def main_pid(manager: UserManager, name: str) -> int:
    return int(manager.systemctl("show", "--property=MainPID", "--value", f"{name}.service").stdout)


def ask(home: Path) -> int:
    """Return the pid of the daemon that answers. The connection starts it if a manager listens."""
    with http_over(Paths(home).socket) as http:
        return int(http.post("/runed.v1.RunedService/Health", json={}).json()["pid"])


def dormant(cli: Cli) -> bool:
    return not LockFile(cli.paths.daemon_lock).is_held()


def units_of(cli: Cli, manager: UserManager) -> list[Path]:
    return [file for file in (manager.root / "config").rglob("runed*") if str(cli.home) in file.read_text()]


def install(cli: Cli) -> str:
    done = cli.run("service", "install")
    assert done.returncode == 0, done.stderr
    return name_of(cli)


def test_service_is_installed_started_stopped_started_by_a_connection_and_removed(user: Cli, manager: UserManager) -> None:
    absent = user.run("service", "status")
    assert absent.returncode == 3
    assert "clients start the daemon" in absent.stdout
    done = user.run("service", "install")
    assert done.returncode == 0, done.stderr
    assert "is active (running)" in done.stdout
    assert "`loginctl enable-linger` lets it go on" in done.stdout
    assert len(units_of(user, manager)) == 3, "two units, and the link that starts one at each login"
    name = name_of(user)
    first = main_pid(manager, name)
    assert ask(user.home) == first
    stopped = user.run("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert f"the service {name} starts the daemon again with the next call" in stopped.stdout
    assert process_gone(first)
    for look in (["status"], ["status", "--json"], ["stop"], ["doctor", "--json"], ["models"]):
        user.run(*look)
    told = user.run("status")
    assert (told.returncode, "its service starts it with the next call" in told.stdout) == (3, True)
    assert "no daemon runs" in user.run("stop").stdout
    assert dormant(user), "a look starts no daemon"
    status = json.loads(user.run("service", "status", "--json").stdout)
    assert (status["listens"], status["runs"]) == (True, False), status
    second = ask(user.home)
    assert second not in {0, first}
    assert second == main_pid(manager, name)
    done = user.run("service", "remove")
    assert done.returncode == 0, done.stderr
    assert process_gone(second)
    assert not user.paths.socket.exists()
    assert not units_of(user, manager)
    assert not user.paths.service_environment.exists()
    assert user.run("service", "status").returncode == 3
    assert "no service is installed" in user.run("service", "remove").stdout


def test_daemon_of_a_client_is_replaced_by_the_service(user: Cli, manager: UserManager) -> None:
    assert user.run("ensure").returncode == 0
    spawned = ask(user.home)
    name = install(user)
    assert process_gone(spawned)
    assert ask(user.home) == main_pid(manager, name)


def test_clients_at_once_start_the_one_daemon_by_the_service(user: Cli, manager: UserManager) -> None:
    name = install(user)
    user.run("stop")
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: user.run("ensure", "--json"), range(6)))
    assert [answer.returncode for answer in answers] == [0] * 6, [answer.stdout for answer in answers]
    assert {json.loads(answer.stdout)["pid"] for answer in answers} == {main_pid(manager, name)}


def test_after_the_removal_clients_start_the_daemon(user: Cli, manager: UserManager) -> None:
    name = install(user)
    of_service = main_pid(manager, name)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(user.run, "service", "remove")
        wait_until(lambda: process_gone(of_service), what="the end of the daemon")
        done = user.run("ensure", "--json")
        assert removal.result(60).returncode == 0
    assert done.returncode == 0, done.stdout
    record = DaemonRecord.read(user.paths.daemon_record)
    assert record is not None
    assert ask(user.home) == record.pid != of_service
    assert json.loads(done.stdout)["pid"] == record.pid


def test_without_the_manager_a_client_starts_the_daemon_and_the_manager_takes_its_place_later(
    user: Cli, manager: UserManager
) -> None:
    name = install(user)
    manager.stop()
    try:
        assert user.run("ensure").returncode == 0
        spawned = ask(user.home)
        assert "systemd cannot be asked" in user.run("service", "status").stdout
    finally:
        manager.start()
    wait_until(lambda: process_gone(spawned), what="the end of the daemon that a client started")
    pid = ask(user.home)
    assert pid == main_pid(manager, name)
    assert LockFile(user.paths.daemon_lock).holder() == pid


def test_killed_daemon_is_started_again(user: Cli, manager: UserManager) -> None:
    name = install(user)
    first = main_pid(manager, name)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: main_pid(manager, name) not in {0, first}, what="the next daemon")
    assert ask(user.home) == main_pid(manager, name)


def test_older_daemon_is_replaced_by_that_of_the_service(user: Cli, manager: UserManager) -> None:
    name = install(user)
    older = main_pid(manager, name)
    record = DaemonRecord.read(user.paths.daemon_record)
    assert record is not None
    msgspec.structs.replace(record, version="0.0.1").write(user.paths.daemon_record)
    done = user.run("ensure", "--json")
    assert done.returncode == 0, done.stdout
    newer = json.loads(done.stdout)["pid"]
    assert process_gone(older)
    assert newer == main_pid(manager, name) == ask(user.home)


def test_port_starts_the_daemon(user: Cli, manager: UserManager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with_port = user.with_environment(RUNED_HTTP=f"127.0.0.1:{port}")
    name = install(with_port)
    with_port.run("stop")
    assert dormant(user)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
        assert connection.recv(12) == b"HTTP/1.1 401"
    assert main_pid(manager, name)


def test_other_settings_of_a_client_are_told_with_what_gives_them_to_the_service(user: Cli) -> None:
    name = install(user)
    other = user.with_environment(RUNED_CTX_SIZE="512")
    told = other.run("ensure")
    assert told.returncode == 0
    assert f"`runed service install` gives them to the service {name}" in told.stderr
    install(other)
    assert other.run("ensure").stderr == ""


def test_service_that_cannot_start_is_told_with_its_log_and_can_be_mended(user: Cli, manager: UserManager) -> None:
    name = install(user)
    user.run("stop")
    kept = user.paths.service_environment.read_text()
    user.paths.service_environment.write_text(f"{kept}RUNED_IDLE_TIMEOUT=soon\n")
    done = user.run("ensure")
    assert done.returncode == 1
    assert f"`systemctl --user status {name}.socket {name}.service` shows" in done.stderr
    assert "RUNED_IDLE_TIMEOUT='soon': accepted is a duration" in done.stderr
    told = user.run("status")
    assert told.returncode == 3
    assert f"{name}.service is " in told.stdout
    assert f"`systemctl --user status {name}.socket {name}.service` tells more" in told.stdout
    assert json.loads(user.run("status", "--json").stdout)["service"] == name
    user.paths.service_environment.write_text(kept)
    assert user.run("ensure").returncode == 0
    assert ask(user.home) == main_pid(manager, name)


def test_service_that_does_not_start_is_not_installed(user: Cli, manager: UserManager) -> None:
    user.paths.config.write_text('{"version": 1, "runed_binary": "/bin/false"}')
    done = user.run("service", "install")
    assert done.returncode == 1
    assert "systemd could not start the daemon" in done.stderr
    assert user.run("service", "status").returncode == 3
    assert not units_of(user, manager)


def test_service_that_is_kept_stopped_does_not_listen(user: Cli, manager: UserManager) -> None:
    name = install(user)
    assert user.run("stop", "--for", "1h").returncode == 0
    assert manager.systemctl("is-active", f"{name}.socket").stdout.strip() == "inactive"
    refused = user.run("ensure")
    assert refused.returncode == 1
    assert "keeps the daemon of" in refused.stderr
    assert user.run("ensure", "--anyway").returncode == 0
    assert ask(user.home) == main_pid(manager, name)


def test_home_that_was_removed_is_served_again(user: Cli, manager: UserManager) -> None:
    name = install(user)
    first = main_pid(manager, name)
    shutil.rmtree(user.home)
    wait_until(lambda: process_gone(first), what="the end of the daemon")
    assert user.run("ensure").returncode == 0
    assert ask(user.home) == main_pid(manager, name) != first


def test_home_with_any_name_is_served(manager: UserManager) -> None:
    root = short_home()
    home = root / """a b%h$HOME"'\\é*[x]?"""
    user = Cli(home, {**manager.variables, "RUNED_MODEL": str(root / "%i.gguf"), "RUNED_LLAMA_SERVER": "/bin/false"})
    try:
        name = install(user)
        assert ask(home) == main_pid(manager, name)
        record = DaemonRecord.read(user.paths.daemon_record)
        assert record is not None
        assert not user.run("ensure").stderr, "the daemon has the settings of the client"
    finally:
        user.run("service", "remove")
        shutil.rmtree(root)


def test_engine_works_in_the_sandbox_of_the_unit(user: Cli, manager: UserManager, llama_server: Path, tiny_qwen3: Path) -> None:
    with_model = user.with_environment(RUNED_MODEL=str(tiny_qwen3), RUNED_LLAMA_SERVER=str(llama_server), **LLAMA_SERVER_ALONE)
    name = install(with_model)
    done = with_model.run("embed", "in a sandbox")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["embeddings"][0]["embedding"]) == 64
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{main_pid(manager, name)}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
