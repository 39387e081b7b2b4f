"""The lock is exclusive between processes and ends with its holder, in whatever way the holder ends."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runed.locking import LockFile

HOLD = """
import pathlib, sys
from runed.locking import LockFile
lock = LockFile(pathlib.Path(sys.argv[1]))
print(lock.try_acquire(), flush=True)
sys.stdin.read()
"""


def test_one_holder_at_a_time_and_it_is_named(home: Path) -> None:
    first, second = LockFile(home / "lock"), LockFile(home / "lock")
    assert first.try_acquire()
    assert first.try_acquire()
    assert not second.try_acquire()
    assert second.holder() == os.getpid()
    first.release()
    first.release()
    assert second.try_acquire()
    second.release()


def test_lock_that_a_full_disk_refused_is_not_held_on(home: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow, as on a full disk
    try:
        with pytest.raises(OSError, match="lock") as caught:
            LockFile(home / "lock").try_acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(home / "lock")
    later = LockFile(home / "lock")
    assert later.try_acquire()
    later.release()


def test_kernel_releases_the_lock_of_a_killed_holder(home: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(home / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"True\n"
        lock = LockFile(home / "lock")
        assert not lock.try_acquire()
        assert lock.holder() == holder.pid
        holder.kill()
        holder.wait(10)
        assert lock.try_acquire()
        lock.release()
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdin.close()
        holder.stdout.close()


def test_a_lock_is_known_to_be_held_without_being_taken(home: Path) -> None:
    lock, other = LockFile(home / "lock"), LockFile(home / "lock")
    assert not other.is_held()
    assert not (home / "lock").exists()
    assert lock.try_acquire()
    assert other.is_held()
    lock.release()
    assert not other.is_held()


def test_lock_is_current_only_while_its_file_is_at_the_path(home: Path) -> None:
    path = home / "lock"
    with LockFile(path) as lock:
        assert not lock.is_current()
        assert lock.try_acquire()
        assert lock.is_current()
        path.rename(home / "moved")
        assert not lock.is_current()
        path.write_bytes((home / "moved").read_bytes())
        assert not lock.is_current()
        (home / "moved").replace(path)
        assert lock.is_current()
    assert not lock.is_current()


def test_file_that_is_unlinked_before_it_is_locked_gives_no_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "lock"
    flock = fcntl.flock

    def unlink_first(descriptor: int, operation: int) -> None:
        path.unlink()
        flock(descriptor, operation)

    with LockFile(path) as lock:
        monkeypatch.setattr(fcntl, "flock", unlink_first)
        assert not lock.try_acquire()
        monkeypatch.undo()
        assert lock.try_acquire()
        assert lock.is_current()
