"""The record is a hint. It may be missing, broken or out of date without harm."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import msgspec
import pytest

from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from runed.version import __version__
from tests.bad_files import BAD_FILES, put_bad_file


@pytest.fixture
def own(paths: Paths) -> DaemonRecord:
    return DaemonRecord.of_this_process(paths.socket)


def test_a_record_is_read_back_as_written_and_only_by_its_owner(paths: Paths, own: DaemonRecord) -> None:
    own.write(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == own
    document = json.loads(paths.daemon_record.read_text())
    assert document == {
        "pid": os.getpid(),
        "start_time": own.start_time,
        "scope": own.scope,
        "version": __version__,
        "socket": str(paths.socket),
    }
    assert paths.daemon_record.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in paths.home.iterdir()] == ["daemon.json"], "no temporary file may stay behind"


def test_a_loopback_port_is_told_too(paths: Paths) -> None:
    record = DaemonRecord.of_this_process(paths.socket, http="http://127.0.0.1:8321")
    record.write(paths.daemon_record)
    assert json.loads(paths.daemon_record.read_text())["http"] == "http://127.0.0.1:8321"
    assert DaemonRecord.read(paths.daemon_record) == record


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "12"},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**31},
        {"start_time": None},
        {"version": "9" * 5000},
        {"socket": 3},
    ],
)
def test_a_broken_record_is_as_good_as_none(paths: Paths, own: DaemonRecord, fields: dict[str, object]) -> None:
    document = msgspec.structs.asdict(own)
    paths.daemon_record.write_text(json.dumps(document))
    assert DaemonRecord.read(paths.daemon_record) == own
    paths.daemon_record.write_text(json.dumps(document | fields))
    assert DaemonRecord.read(paths.daemon_record) is None


@pytest.mark.parametrize("kind", BAD_FILES)
def test_anything_in_the_place_of_the_record_is_none_and_the_next_daemon_writes_its_own(
    paths: Paths, own: DaemonRecord, kind: str
) -> None:
    put_bad_file(kind, paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) is None
    own.tell_draining(paths.daemon_record)
    own.remove(paths.daemon_record)
    own.write(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == own


def test_a_missing_record_is_none(paths: Paths) -> None:
    assert DaemonRecord.read(paths.daemon_record) is None


def test_a_drain_is_told_and_the_record_then_still_removed(paths: Paths, own: DaemonRecord) -> None:
    own.write(paths.daemon_record)
    own.tell_draining(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == msgspec.structs.replace(own, draining=True)
    own.remove(paths.daemon_record)
    assert not paths.daemon_record.exists()


def test_a_failure_is_told_until_it_is_over_and_beside_a_drain(paths: Paths, own: DaemonRecord) -> None:
    own.tell_failed(paths.daemon_record, True)
    assert not paths.daemon_record.exists()
    own.write(paths.daemon_record)
    own.tell_failed(paths.daemon_record, True)
    own.tell_draining(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == msgspec.structs.replace(own, draining=True, failed=True)
    own.tell_failed(paths.daemon_record, False)
    assert DaemonRecord.read(paths.daemon_record) == msgspec.structs.replace(own, draining=True)


def test_a_drain_is_not_told_in_a_successors_record_or_in_none(paths: Paths, own: DaemonRecord) -> None:
    own.tell_draining(paths.daemon_record)
    assert not paths.daemon_record.exists()
    successor = msgspec.structs.replace(own, pid=own.pid + 1)
    successor.write(paths.daemon_record)
    own.tell_draining(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == successor


def test_a_successors_record_is_not_removed(paths: Paths, own: DaemonRecord) -> None:
    successor = msgspec.structs.replace(own, pid=own.pid + 1)
    successor.write(paths.daemon_record)
    own.remove(paths.daemon_record)
    assert DaemonRecord.read(paths.daemon_record) == successor
    successor.remove(paths.daemon_record)
    assert not paths.daemon_record.exists()
    successor.remove(paths.daemon_record)


def test_a_reused_pid_is_neither_taken_for_the_daemon_nor_killed(own: DaemonRecord) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        stale = msgspec.structs.replace(own, pid=bystander.pid, start_time=own.start_time - 3600)
        assert not stale.is_alive()
        assert not stale.terminate()
        assert bystander.poll() is None
        bystander.communicate(b"\n")
        assert bystander.returncode == 0


def test_a_dead_process_is_not_alive(own: DaemonRecord) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert own.is_alive()
    assert not msgspec.structs.replace(own, pid=process.pid).is_alive()
    assert not msgspec.structs.replace(own, pid=process.pid).terminate()


def test_a_failed_write_leaves_the_old_record_whole(paths: Paths, own: DaemonRecord) -> None:
    own.write(paths.daemon_record)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow, as on a full disk
    try:
        with pytest.raises(OSError, match=r"daemon\.json"):
            msgspec.structs.replace(own, version="9").write(paths.daemon_record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert DaemonRecord.read(paths.daemon_record) == own
