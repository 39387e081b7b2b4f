"""Commands beside a daemon in another pid namespace, as that of a container that shares the home."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runed.processes import identify, is_alive
from tests.cli.support import SCRIPTS, Cli
from tests.support import wait_until
from tests.users import needs_root

pytestmark = [needs_root, pytest.mark.skipif(shutil.which("unshare") is None, reason="only Linux has pid namespaces")]

IN_A_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def run_in_a_namespace(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a pid namespace of its own, which shows no process of the machine."""
    argv = [*IN_A_NAMESPACE, str(SCRIPTS / "runed"), *arguments]
    env = cli.environment_of_a_command()
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


@contextmanager
def daemon_in_a_namespace(cli: Cli) -> Iterator[int]:
    """Run a daemon in a pid namespace of its own, in which its pid is 1. Return its pid here."""
    argv = [*IN_A_NAMESPACE, str(SCRIPTS / "runed"), "serve"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, env=cli.environment_of_a_command(), stdin=quiet, stdout=quiet, stderr=quiet) as unshare:
        try:
            wait_until(lambda: cli.paths.socket.exists() and cli.paths.daemon_record.exists(), what="the daemon")
            assert json.loads(cli.paths.daemon_record.read_text())["pid"] == 1
            (daemon,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
            yield int(daemon)
        finally:
            unshare.kill()


def test_a_daemon_in_a_container_is_measured_and_stopped_from_outside_by_its_pid_there(cli: Cli) -> None:
    with daemon_in_a_namespace(cli) as pid:
        daemon = identify(pid)
        assert daemon is not None
        assert cli.run("embed", "x").returncode == 0
        document = json.loads(cli.run("status", "--json").stdout)
        assert document["pid"] == pid
        assert document["daemon_memory_bytes"] > 20_000_000
        assert document["engine_memory_bytes"] == 0, "its pid counts in the container"
        assert json.loads(cli.run("ensure", "--json").stdout)["pid"] == pid
        done = cli.run("stop", "--grace", "5")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("stopped the daemon")
        assert not is_alive(daemon)


def test_a_frozen_daemon_in_a_container_is_ended_by_force_from_outside(cli: Cli) -> None:
    with daemon_in_a_namespace(cli) as pid:
        daemon = identify(pid)
        assert daemon is not None
        os.kill(pid, signal.SIGSTOP)
        done = cli.run("stop", "--grace", "1", "--force")
        assert done.returncode == 0, done.stderr
        assert not is_alive(daemon)


def test_from_inside_of_a_container_a_daemon_outside_is_stopped_but_not_measured(cli: Cli) -> None:
    assert cli.run("ensure").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    document = json.loads(run_in_a_namespace(cli, "status", "--json").stdout)
    assert (document["running"], document["pid"], document["daemon_memory_bytes"]) == (True, 0, 0)
    assert "pid not seen from here, memory unknown" in run_in_a_namespace(cli, "status").stdout
    assert json.loads(run_in_a_namespace(cli, "ensure", "--json").stdout)["pid"] is None
    done = run_in_a_namespace(cli, "stop")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: not is_alive(daemon), what="the end of the daemon")


def test_from_inside_of_a_container_a_frozen_daemon_outside_is_left_alone_without_advice_to_kill(cli: Cli) -> None:
    assert cli.run("ensure").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        done = run_in_a_namespace(cli, "stop", "--force")
        assert done.returncode == 1
        assert "its process cannot be seen from here" in done.stderr
        assert "kill" not in done.stderr
        assert is_alive(daemon)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    # It may obey the Shutdown that it was sent while it was frozen, and remove its record a moment before it ends.
    cli.run("stop")
    wait_until(lambda: not is_alive(daemon), what="the end of the daemon")
