"""Homes in odd places: each is told in one true sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.support import SCRIPTS, Cli
from tests.users import OTHER, needs_root, run_as

NEEDS_MOUNTS = [needs_root, pytest.mark.skipif(shutil.which("unshare") is None, reason="only Linux has mount namespaces")]


def run_with(cli: Cli, preparation: str, *arguments: str) -> str:
    """Run a command where a script of the shell has changed the mounts. Return its only line on standard error."""
    script = f'set -e; {preparation}; exec "$0" "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, str(SCRIPTS / "runed"), *arguments]
    env = cli.environment_of_a_command()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode in {1, 2}
    assert "bug" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("runed: waiting: ")]  # said on a slow machine
    return line


@pytest.fixture
def bare(home: Path) -> Cli:
    """A home without engine and model."""
    return Cli(home)


def mount(cli: Cli, options: str, name: str = "") -> str:
    return f"mount -t tmpfs -o mode=700,{options} none {cli.home / name}"


@pytest.mark.parametrize("command", ["ensure", "status", "stop", "embed", "serve", "install"])
def test_home_that_is_not_utf8_is_a_bad_setting(tmp_path: Path, command: str) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/h\xff")
    done = Cli(Path(path)).run(command, *(["x"] if command == "embed" else []))
    assert done.returncode == 2
    assert done.stderr.startswith("runed: the home '")
    assert done.stderr.endswith("h\\udcff' is not UTF-8; accepted is UTF-8 alone\n")
    assert list(tmp_path.iterdir()) == []


def test_setting_that_is_not_utf8_is_named(bare: Cli) -> None:
    done = bare.with_environment(RUNED_MODEL=os.fsdecode(b"/m\xff.gguf")).run("ensure", "--json")
    assert done.returncode == 2
    assert "RUNED_MODEL '/m\\udcff.gguf' is not UTF-8" in json.loads(done.stdout)["error"]["message"]


class TestMounts:
    """File systems that are full, read-only, or run no programs."""

    pytestmark = NEEDS_MOUNTS

    def test_program_on_a_file_system_without_execution(self, bare: Cli) -> None:
        config = json.dumps({"version": 1, "runed_binary": str(bare.home / "runed")})
        files = f"echo '{config}' > {bare.home}/config.json; echo '#!/bin/sh' > {bare.home}/runed; chmod 700 {bare.home}/runed"
        line = run_with(bare, f"{mount(bare, 'noexec')}; {files}", "ensure")
        assert f"{bare.home}/runed: Permission denied: the file system at {bare.home} is mounted noexec" in line

    def test_engine_on_a_file_system_without_execution(self, bare: Cli) -> None:
        engine = f"cp /bin/true {bare.home}/llama-server"
        line = run_with(
            bare.with_environment(RUNED_LLAMA_SERVER=str(bare.home / "llama-server"), RUNED_MODEL="/dev/null"),
            f"{mount(bare, 'noexec')}; {engine}",
            "install",
        )
        assert f"llama-server cannot be run: the file system at {bare.home} is mounted noexec, so no program on it" in line

    def test_full_file_system_is_named_with_the_file(self, bare: Cli) -> None:
        fill = f"head -c 1000000 /dev/zero > {bare.home}/fill 2> /dev/null || true"
        line = run_with(bare, f"{mount(bare, 'size=64k')}; {fill}", "ensure")
        assert f"{bare.home}/spawn.lock: No space left on device: the file system at {bare.home} is full" in line

    def test_no_room_for_the_log_is_told(self, bare: Cli) -> None:
        """The lock still fits in the last page. The daemon ends, and cannot say why."""
        fill = f"mkdir {bare.home}/logs; touch {bare.home}/logs/daemon.log; head -c 61440 /dev/zero > {bare.home}/x"
        line = run_with(bare, f"{mount(bare, 'size=64k')}; {fill}", "ensure")
        assert f"daemon.log cannot be written: the file system at {bare.home} is full" in line

    def test_file_system_without_room_for_more_files_is_told_from_a_full_one(self, bare: Cli) -> None:
        line = run_with(bare, f"{mount(bare, 'nr_inodes=3')}; mkdir {bare.home}/logs; touch {bare.home}/x", "ensure")
        assert f"No space left on device: the file system at {bare.home} has no room for more files" in line

    def test_read_only_file_system_is_named(self, bare: Cli) -> None:
        line = run_with(bare, f"{mount(bare, 'size=1m')}; mkdir {bare.home}/logs; mount -o remount,ro {bare.home}", "ensure")
        assert f"{bare.home}/spawn.lock: Read-only file system: the file system at {bare.home} is mounted read-only" in line

    def test_output_of_a_job_on_a_full_file_system(self, cli: Cli, tmp_path: Path) -> None:
        assert cli.run("embed", "x").returncode == 0
        (cli.home / "texts").write_text("\n".join(map(str, range(100))))
        small = f"mount -t tmpfs -o size=8k none {tmp_path}"
        line = run_with(cli, small, "embed", "-f", str(cli.home / "texts"), "-o", str(tmp_path / "rows.jsonl"))
        assert f"{tmp_path}/rows.jsonl: No space left on device: the file system at {tmp_path} is full" in line

    def test_machine_without_proc(self, bare: Cli) -> None:
        line = run_with(bare, "mount -t tmpfs none /proc", "serve")
        assert line == "runed: /proc cannot be read, which tells processes apart; mount it: `mount -t proc proc /proc`"


@needs_root
@pytest.mark.parametrize("name", ["", "logs"])
def test_directory_that_cannot_be_written_to_is_named(home: Path, name: str) -> None:
    (home / "logs").mkdir()
    for path in (home, home / "logs"):
        os.chown(path, OTHER, OTHER)
        path.chmod(0o500 if path == home / name else 0o700)
    done = run_as(OTHER, "from runed.cli.main import main\nmain(['ensure'])", RUNED_HOME=str(home))
    file = home / (f"{name}/daemon.log" if name else "spawn.lock")
    assert (
        done.stderr == f"runed: the daemon cannot be started: {file}: Permission denied; `runed doctor` looks for the cause\n"
    )
