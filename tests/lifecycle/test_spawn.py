"""A daemon is started once and detached. A failed start tells the daemon's own error. A second daemon never displaces a
first."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from runed.errors import DaemonStartError, ForeignPathError, LifecycleError
from runed.lifecycle import spawn
from runed.lifecycle.launch import find_command
from runed.lifecycle.listener import find_listener, probe
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import ensure_daemon, stop_daemon, wait_for_end
from runed.locking import LockFile
from runed.paths import Paths, ensure_private_dir
from runed.peers import Peer
from runed.processes import identify
from runed.settings import Settings
from tests.lifecycle.conftest import starts, write_fake
from tests.support import process_gone, wait_until

Fake = Callable[..., Settings]

ENSURE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from runed.lifecycle.spawn import ensure_daemon
    from runed.settings import Settings
    handle = ensure_daemon(Settings(home=Path(sys.argv[1]), runed_binary=Path(sys.argv[2])))
    print(handle.pid, handle.started)
    """
)


def start_ensure(settings: Settings, **options: object) -> subprocess.Popen[str]:
    """Call ensure_daemon in another process."""
    argv = [sys.executable, "-c", ENSURE, str(settings.home), str(settings.runed_binary)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return] # of one literal


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir() if link.exists()}


def test_a_daemon_is_started_once_and_then_found(fake: Fake, paths: Paths) -> None:
    settings = fake()
    first = ensure_daemon(settings)
    assert first.started
    assert probe(paths.socket)
    second = ensure_daemon(settings)
    assert second == replace(first, started=False)
    assert [start["pid"] for start in starts(paths.home)] == [first.pid]


@pytest.mark.slow
def test_sixteen_starters_at_once_start_one_daemon(fake: Fake, paths: Paths) -> None:
    settings = fake()
    starters = [start_ensure(settings) for _ in range(16)]
    answers = [starter.communicate(timeout=60)[0].split() for starter in starters]
    assert all(starter.returncode == 0 for starter in starters)
    (start,) = starts(paths.home)
    assert {pid for pid, _ in answers} == {str(start["pid"])}
    assert [started for _, started in answers].count("True") == 1


def test_a_daemon_that_dies_is_reported_at_once_with_what_it_said_in_this_start_only(fake: Fake, paths: Paths) -> None:
    settings = fake("dies")
    paths.logs.mkdir(mode=0o700)
    paths.daemon_log.write_text("an older complaint\n")
    began = time.monotonic()
    with pytest.raises(DaemonStartError) as caught:
        ensure_daemon(settings)
    assert time.monotonic() - began < 10
    assert "exited with code 1 before it listened" in caught.value.message
    assert caught.value.message.endswith("ends with:\nfake: no such luck")
    assert "an older complaint" in paths.daemon_log.read_text(), "the log is appended to"
    assert caught.value.metadata == {"log": str(paths.daemon_log)}


def test_the_tail_is_whole_when_the_daemon_rotated_its_log(fake: Fake) -> None:
    with pytest.raises(DaemonStartError, match=r"fake: on standard error\nfake: in the new log$"):
        ensure_daemon(fake("dies after rotating its log"))


def test_a_daemon_killed_by_a_signal_is_reported_with_the_signal(fake: Fake) -> None:
    with pytest.raises(DaemonStartError, match=r"was ended by SIGKILL before it listened; its log .* says nothing"):
        ensure_daemon(fake("is killed"))


@pytest.mark.parametrize("behaviour", ["never gets ready", "never gets ready and ignores SIGTERM"])
@pytest.mark.slow
def test_a_daemon_that_never_gets_ready_is_ended_and_reported(fake: Fake, paths: Paths, behaviour: str) -> None:
    settings = fake(behaviour)
    began = time.monotonic()
    with pytest.raises(DaemonStartError, match="did not listen in time and was ended"):
        ensure_daemon(settings, timeout=1.5)
    assert time.monotonic() - began < 10
    for start in starts(paths.home):
        assert process_gone(start["pid"])


def test_a_home_whose_path_is_too_long_for_a_socket_is_served_at_its_alias(fake: Fake, paths: Paths) -> None:
    deep = Paths(paths.home / ("deep-" * 30))
    handle = ensure_daemon(replace(fake(), home=deep.home))
    try:
        assert handle.socket == deep.socket
        assert handle.socket.parent != deep.home
        assert ensure_daemon(replace(fake(), home=deep.home)).pid == handle.pid
    finally:
        assert stop_daemon(deep)
    assert not handle.socket.exists()


def test_after_a_failed_start_the_next_one_works(fake: Fake) -> None:
    with pytest.raises(DaemonStartError):
        ensure_daemon(fake("dies"))
    assert ensure_daemon(fake("serves")).started


def test_a_start_that_always_finds_another_daemon_which_is_not_there_ends_in_an_error(fake: Fake, paths: Paths) -> None:
    with pytest.raises(DaemonStartError, match="exited with code 0"):
        ensure_daemon(fake("leaves quietly"))
    assert len(starts(paths.home)) == 3


def test_a_foreground_daemon_that_is_just_about_to_listen_is_waited_for(fake: Fake, paths: Paths) -> None:
    settings = fake()
    with LockFile(paths.daemon_lock) as starting:
        assert starting.try_acquire()
        ensuring = start_ensure(settings)
        wait_until(lambda: starts(paths.home), what="the start of a second daemon")
    # The lock is free now. The third attempt at the latest gets it.
    output, _ = ensuring.communicate(timeout=60)
    assert output.split()[1] == "True"


def test_the_remains_of_a_killed_daemon_do_not_hinder_the_next(fake: Fake, paths: Paths) -> None:
    settings = fake()
    first = ensure_daemon(settings)
    assert first.pid
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: process_gone(first.pid or 0))
    assert paths.socket.exists()
    assert paths.daemon_record.exists()
    second = ensure_daemon(settings)
    assert second.started
    assert second.pid != first.pid
    assert DaemonRecord.read(paths.daemon_record) is not None


def test_a_stale_record_with_a_reused_pid_hinders_nobody_and_harms_nobody(fake: Fake, paths: Paths) -> None:
    settings = fake(version="9.9.9")
    own = DaemonRecord.of_this_process(paths.socket)
    msgspec.structs.replace(own, start_time=own.start_time - 3600, version="0.0.1").write(paths.daemon_record)
    assert ensure_daemon(settings, minimum_version="9.9.9").started


def test_a_stale_record_does_not_orphan_a_live_daemon(fake: Fake, paths: Paths) -> None:
    settings = fake()
    first = ensure_daemon(settings)
    paths.daemon_record.write_text("{}")
    assert ensure_daemon(settings, minimum_version="99").started is False
    assert first.pid
    assert not process_gone(first.pid)


def drains(paths: Paths) -> bool:
    record = DaemonRecord.read(paths.daemon_record)
    return record is not None and record.draining


@pytest.mark.parametrize("openly", [False, True])
def test_a_draining_daemon_is_waited_for_and_then_followed_by_a_new_one(fake: Fake, paths: Paths, *, openly: bool) -> None:
    settings = fake("serves, drains openly" if openly else "serves, drains slowly")
    first = ensure_daemon(settings)
    assert first.pid
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: drains(paths) if openly else not probe(paths.socket))
    second = ensure_daemon(settings)
    assert second.started
    assert process_gone(first.pid)
    assert len(starts(paths.home)) == 2, "nothing may be started in vain while the old daemon drains"


def test_a_recorded_daemon_that_is_stuck_without_listening_is_named_in_the_error(fake: Fake, paths: Paths) -> None:
    settings = fake()
    DaemonRecord.of_this_process(paths.socket).write(paths.daemon_record)
    with LockFile(paths.daemon_lock) as lock:
        assert lock.try_acquire()
        with pytest.raises(DaemonStartError, match=rf"pid {os.getpid()}, takes no calls.*end it with `runed stop`"):
            ensure_daemon(settings, timeout=0.3)
        assert starts(paths.home) == []


def test_a_live_daemon_that_lost_the_home_is_not_waited_for(fake: Fake, paths: Paths) -> None:
    """It holds the lock of a home that was removed, and somebody put its record, or a backup of it, into the new home."""
    settings = fake()
    DaemonRecord.of_this_process(paths.socket).write(paths.daemon_record)
    with LockFile(paths.daemon_lock) as lock:
        assert lock.try_acquire()
        paths.daemon_lock.unlink()
        assert ensure_daemon(settings, timeout=10).started


def test_a_record_of_an_old_version_that_names_a_stranger_hinders_nobody(fake: Fake, paths: Paths) -> None:
    own = DaemonRecord.of_this_process(paths.socket)
    msgspec.structs.replace(own, scope="", version="0.0.1").write(paths.daemon_record)
    assert ensure_daemon(fake(version="9.9.9"), minimum_version="9.9.9", timeout=20).started


def test_a_starter_that_hangs_is_named_in_the_error(fake: Fake, paths: Paths) -> None:
    settings = fake()
    with LockFile(paths.spawn_lock) as lock:
        assert lock.try_acquire()
        with pytest.raises(DaemonStartError, match=f"process {os.getpid()} is starting the daemon"):
            ensure_daemon(settings, timeout=0.3)


def test_a_newer_client_restarts_an_older_daemon_after_its_drain(fake: Fake, paths: Paths) -> None:
    old = ensure_daemon(fake("serves, drains slowly", "0.9.0"))
    new = ensure_daemon(fake("serves", "0.10.0"), minimum_version="0.10.0")
    assert new.started
    assert new.version == "0.10.0"
    assert old.pid
    assert process_gone(old.pid)
    assert len(starts(paths.home)) == 2


def test_a_newer_client_does_not_hurry_an_older_daemon_that_drains_already(fake: Fake, paths: Paths) -> None:
    old = ensure_daemon(fake("serves, drains openly", "0.9.0"))
    assert old.pid
    os.kill(old.pid, signal.SIGTERM)
    wait_until(lambda: drains(paths))
    new = ensure_daemon(fake("serves", "0.10.0"), minimum_version="0.10.0")
    assert (new.started, new.version) == (True, "0.10.0")
    assert process_gone(old.pid)
    assert not (paths.home / "hurried").exists()


def test_each_look_reads_the_record_once(fake: Fake, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_daemon(fake("serves, drains slowly", "0.9.0"))
    steps: list[str] = []
    read = DaemonRecord.read

    def note_read(path: Path) -> DaemonRecord | None:
        steps.append("read")
        return read(path)

    def note_probe(path: Path) -> Peer | None:
        steps.append("probe")
        return find_listener(path)

    monkeypatch.setattr(DaemonRecord, "read", note_read)
    monkeypatch.setattr(spawn, "find_listener", note_probe)
    assert ensure_daemon(fake("serves", "0.10.0"), minimum_version="0.10.0").started
    *looks, last = steps
    assert last == "read", "of the daemon that was started"
    assert len(looks) >= 4
    assert looks == ["probe", "read"] * (len(looks) // 2)


@pytest.mark.parametrize("removals", [2, 3])
def test_a_home_that_is_removed_while_it_is_made_is_made_again(
    fake: Fake, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    left = removals

    def make_and_lose(path: Path) -> None:
        nonlocal left
        ensure_private_dir(path)
        if left:
            left -= 1
            shutil.rmtree(paths.home)

    monkeypatch.setattr(spawn, "ensure_private_dir", make_and_lose)
    settings = replace(fake(), runed_binary=write_fake(tmp_path, "serves"))
    if removals == 2:
        assert ensure_daemon(settings).started
    else:
        with pytest.raises(DaemonStartError, match=r"spawn\.lock: No such file or directory"):
            ensure_daemon(settings)
        paths.home.mkdir()


@pytest.mark.slow
def test_many_newer_clients_restart_an_older_daemon_once(fake: Fake, paths: Paths) -> None:
    ensure_daemon(fake("serves, drains slowly", "0.9.0"))
    code = ENSURE.replace("Path(sys.argv[2]))", "Path(sys.argv[2])), minimum_version='0.10.0'")
    argv = [sys.executable, "-c", code, str(paths.home), str(write_fake(paths.home, "serves", "0.10.0"))]
    clients = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [client.communicate(timeout=60)[0].split() for client in clients]
    assert len({pid for pid, _ in answers}) == 1
    assert len(starts(paths.home)) == 2


@pytest.mark.parametrize("minimum", ["0.9.0", "0.10.0", "0.10.0rc1", "0.10", "nonsense", None])
def test_an_older_or_equal_client_never_restarts_a_daemon(fake: Fake, paths: Paths, minimum: str | None) -> None:
    settings = fake("serves", "0.10.0")
    first = ensure_daemon(settings)
    assert ensure_daemon(settings, minimum_version=minimum) == replace(first, started=False)


def test_an_old_program_configured_by_the_user_is_not_restarted_at_every_connect(fake: Fake, paths: Paths) -> None:
    settings = fake("serves", "0.9.0")
    first = ensure_daemon(settings, minimum_version="0.10.0")
    assert first.version == "0.9.0"
    for _ in range(2):
        assert ensure_daemon(settings, minimum_version="0.10.0") == replace(first, started=False)


class TestDetachment:
    """A daemon outlives the process that started it, and inherits nothing from it."""

    def test_it_has_its_own_session_the_root_directory_and_no_descriptor_of_its_starter(self, fake: Fake, paths: Paths) -> None:
        settings = fake()
        with (paths.home / "of-the-starter").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            ensuring = start_ensure(settings, pass_fds=(file.fileno(),))
            ensuring.communicate(timeout=60)
        (start,) = starts(paths.home)
        assert start["session"] == start["pid"]
        assert start["directory"] == "/"
        descriptors = start["descriptors"]
        assert descriptors.pop("0") == "/dev/null"
        assert descriptors.pop("1") == "/dev/null"
        assert descriptors.pop("2") == str(paths.daemon_log)
        assert [target.partition(":")[0] for target in descriptors.values() if "starts.jsonl" not in target] == ["pipe"]

    def test_only_what_it_reads_of_the_environment_reaches_it(
        self, fake: Fake, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_API_KEY", "leak")
        monkeypatch.setenv("PYTHONPATH", "/leak")
        monkeypatch.setenv("SECRET_TOKEN", "leak")
        monkeypatch.setenv("RUNED_HOME", "/nonexistent")
        monkeypatch.setenv("RUNED_CTX_SIZE", "512")
        monkeypatch.chdir(paths.home)
        monkeypatch.setenv("RUNED_MODEL", "models/mine.gguf")
        monkeypatch.setenv("RUNED_MANIFEST", "https://example.org/manifest.json")
        ensure_daemon(fake())
        environment = starts(paths.home)[0]["environment"]
        assert "leak" not in environment.values()
        assert "/leak" not in environment.values()
        assert environment["RUNED_HOME"] == str(paths.home), "home= beats the environment"
        assert environment["RUNED_CTX_SIZE"] == "512"
        assert environment["RUNED_MODEL"] == f"{paths.home}/models/mine.gguf", "the daemon works in another directory"
        assert environment["RUNED_MANIFEST"] == "https://example.org/manifest.json"

    def test_it_survives_the_end_of_its_starter_and_of_the_terminal(self, fake: Fake, paths: Paths) -> None:
        ensuring = start_ensure(fake(), start_new_session=True)
        pid = int(ensuring.communicate(timeout=60)[0].split()[0])
        with pytest.raises(ProcessLookupError):
            os.killpg(ensuring.pid, signal.SIGHUP)
        assert probe(paths.socket)
        assert not process_gone(pid)

    def test_no_zombie_stays_in_a_client_that_outlives_the_daemon(self, fake: Fake) -> None:
        handle = ensure_daemon(fake())
        assert handle.pid
        os.kill(handle.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{handle.pid}").exists(), what="the end of the zombie")

    def test_no_descriptor_stays_in_the_client(self, fake: Fake) -> None:
        before = open_descriptors()
        ensure_daemon(fake())
        with pytest.raises(DaemonStartError):
            ensure_daemon(replace(fake("dies"), home=fake("dies").home / "other"))
        assert open_descriptors() <= before


class TestForeignPaths:
    """Foreign files stay untouched, and the error names them."""

    def test_a_file_in_place_of_the_home(self, home: Path) -> None:
        (home / "file").write_text("precious")
        with pytest.raises(ForeignPathError, match="is not a directory"):
            ensure_daemon(Settings(home=home / "file"))

    @pytest.mark.parametrize("name", ["spawn.lock", "logs/daemon.log"])
    def test_a_link_in_place_of_lock_or_log_is_not_followed(self, fake: Fake, paths: Paths, name: str) -> None:
        settings = fake()
        victim = paths.home / "victim"
        victim.write_text("precious")
        paths.logs.mkdir(mode=0o700)
        (paths.home / name).symlink_to(victim)
        with pytest.raises(DaemonStartError, match=name):
            ensure_daemon(settings)
        assert victim.read_text() == "precious"

    def test_a_file_in_place_of_the_socket_is_told_by_the_daemon(self, paths: Paths, fake: Fake) -> None:
        settings = fake()
        paths.socket.write_text("precious")
        with pytest.raises(DaemonStartError, match="not a socket of yours"):
            ensure_daemon(settings)
        assert paths.socket.read_text() == "precious"


class TestProgram:
    """The choice of the `runed` program to start."""

    def test_one_that_cannot_be_run_is_named(self, home: Path) -> None:
        with pytest.raises(DaemonStartError, match=r"/nonexistent/runed: No such file"):
            ensure_daemon(Settings(home=home, runed_binary=Path("/nonexistent/runed")))
        program = home / "runed"
        program.touch(0o600)
        with pytest.raises(DaemonStartError, match=f"{program}: Permission denied"):
            ensure_daemon(Settings(home=home, runed_binary=program))

    def test_this_interpreter_is_used_where_runed_is_installed_in_it(self, home: Path) -> None:
        assert find_command(Settings(home=home)) == [sys.executable, "-P", "-m", "runed"]

    def test_else_the_path_and_then_the_home_are_searched(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)  # as inside another program
        monkeypatch.setenv("PATH", str(home))
        settings = Settings(home=home / "home")
        with pytest.raises(DaemonStartError, match="pip install runed"):
            find_command(settings)
        installed = Paths(settings.home).bin / "runed"
        installed.parent.mkdir(parents=True)
        installed.touch(0o700)
        assert find_command(settings) == [str(installed)]
        on_path = home / "runed"
        on_path.touch(0o700)
        assert find_command(settings) == [str(on_path)]


class TestStop:
    """The stop of last resort."""

    def test_it_ends_the_recorded_daemon_and_waits(self, fake: Fake, paths: Paths) -> None:
        handle = ensure_daemon(fake("serves, drains slowly"))
        assert handle.pid
        assert stop_daemon(paths)
        assert process_gone(handle.pid)
        assert not stop_daemon(paths)

    def test_it_says_when_the_drain_takes_too_long(self, fake: Fake, paths: Paths) -> None:
        handle = ensure_daemon(fake("serves, drains slowly"))
        with pytest.raises(LifecycleError, match=rf"pid {handle.pid}, did not end within 0\.1 s.*runed stop --force"):
            stop_daemon(paths, timeout=0.1)

    def test_it_kills_one_that_does_not_end_if_it_is_forced(self, fake: Fake, paths: Paths) -> None:
        handle = ensure_daemon(fake("serves, drains slowly"))
        assert handle.pid
        assert stop_daemon(paths, timeout=0.1, force=True)
        assert process_gone(handle.pid)

    def test_it_ends_one_that_was_stopped(self, fake: Fake, paths: Paths) -> None:
        handle = ensure_daemon(fake())
        assert handle.pid
        os.kill(handle.pid, signal.SIGSTOP)
        assert stop_daemon(paths, timeout=10)
        assert process_gone(handle.pid)

    def test_it_waits_for_a_parent_that_is_slow_to_ask_for_the_end(self, paths: Paths) -> None:
        with subprocess.Popen(["sleep", "60"]) as daemon:
            identity = identify(daemon.pid)
            assert identity is not None
            daemon.kill()
            parent = threading.Timer(0.4, daemon.wait)
            parent.start()
            wait_for_end(paths, identity, timeout=10, force=False)
            with pytest.raises(ProcessLookupError):
                os.kill(identity.pid, 0)
            parent.join()

    def test_it_does_not_wait_long_for_a_parent_that_never_asks(self, paths: Paths) -> None:
        with subprocess.Popen(["sleep", "60"]) as daemon:
            identity = identify(daemon.pid)
            assert identity is not None
            daemon.kill()
            wait_for_end(paths, identity, timeout=10, force=False)

    def test_it_waits_for_a_daemon_that_has_already_removed_its_files(self, paths: Paths) -> None:
        with subprocess.Popen(["sleep", "0.5"]) as daemon:
            identity = identify(daemon.pid)
            assert stop_daemon(paths, identity, timeout=10)
            assert daemon.poll() is not None

    def test_it_signals_no_program_that_only_hands_connections_on(self, paths: Paths) -> None:
        code = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", code, paths.socket]) as forwarder:
            wait_until(lambda: probe(paths.socket))
            for _ in range(2):
                with pytest.raises(LifecycleError, match="cannot be seen from here"):
                    stop_daemon(paths, timeout=1, force=True)
                assert ensure_daemon(Settings(home=paths.home)).pid is None
                # The record that a daemon has left behind is none of this program.
                DaemonRecord.of_this_process(paths.socket).write(paths.daemon_record)
            assert forwarder.poll() is None
            forwarder.kill()

    @pytest.mark.parametrize("scope", ["", "another boot/4026531836"])
    def test_it_signals_no_process_that_only_a_record_names(self, paths: Paths, scope: str) -> None:
        with subprocess.Popen(["sleep", "60"]) as bystander:
            identity = identify(bystander.pid)
            assert identity is not None
            own = DaemonRecord.of_this_process(paths.socket)
            changes = {"pid": identity.pid, "start_time": identity.start_time, "scope": scope}
            msgspec.structs.replace(own, **changes).write(paths.daemon_record)
            assert not stop_daemon(paths, timeout=1)
            assert bystander.poll() is None
            bystander.kill()


def test_a_program_that_does_not_tell_its_version_takes_no_longer_than_the_call_may(fake: Fake, paths: Paths) -> None:
    settings = fake(version="0.0.1")
    older = ensure_daemon(settings)
    assert settings.runed_binary is not None
    settings.runed_binary.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    assert ensure_daemon(settings, timeout=0.5, minimum_version="0.1.0") == replace(older, started=False)
    assert time.monotonic() - began < 30
