"""Files are written whole, all processes agree on a secret, and a thread's work is always finished."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from runed.errors import ForeignPathError
from runed.files import (
    NewFile,
    load_secret,
    read_record,
    remove_unfinished,
    replace_durably,
    run_in_thread,
    write_atomically,
)
from tests.bad_files import BAD_FILES, put_bad_file


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files and directories that were synced to the disk, in order."""
    names: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", note)
    return names


def test_atomic_write_that_a_full_disk_refused_names_the_file_and_leaves_the_old_one(home: Path) -> None:
    path = home / "file.json"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow, as on a full disk
    try:
        with pytest.raises(OSError, match=r"file\.json'") as caught:
            write_atomically(path, b"new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in home.iterdir()] == ["file.json"]


def test_atomic_write_replaces_and_leaves_nothing_beside(home: Path) -> None:
    path = home / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in home.iterdir()] == ["file.json"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells the name of a descriptor")
def test_content_comes_to_the_disk_before_the_name_and_the_name_before_the_end(home: Path, synced: list[str]) -> None:
    write_atomically(home / "a", b"new")
    assert [name.startswith(".a.") for name in synced] == [True, False]
    assert synced.pop() == home.name
    synced.clear()
    (home / "b.partial").write_bytes(b"whole")
    replace_durably(home / "b.partial", home / "b")
    assert synced == ["b.partial", home.name]
    assert (home / "b").read_bytes() == b"whole"


def test_what_a_killed_process_left_beside_a_file_is_removed(home: Path) -> None:
    (home / "file").write_bytes(b"old")
    NewFile(home / "file").file.close()
    NewFile(home / "other").file.close()
    remove_unfinished(home / "file")
    assert {entry.name.split(".")[1] for entry in home.iterdir() if entry.name.startswith(".")} == {"other"}
    assert (home / "file").read_bytes() == b"old"


# Secrets


def test_all_who_ask_for_a_secret_at_once_get_the_same(home: Path) -> None:
    for attempt in range(20):
        path = home / str(attempt)
        barrier, secrets = threading.Barrier(8), list[bytes]()

        def ask(path: Path = path, barrier: threading.Barrier = barrier, secrets: list[bytes] = secrets) -> None:
            barrier.wait()
            secrets.append(load_secret(path, lambda: os.urandom(32)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert secrets == [path.read_bytes()] * 8
        assert len(secrets[0]) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({(home / str(attempt)).read_bytes() for attempt in range(20)}) == 20
    assert len(list(home.iterdir())) == 20


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_something_else_in_the_place_of_a_secret_is_refused_untouched(home: Path, kind: str) -> None:
    path = home / "secret"
    match kind:
        case "link":
            path.symlink_to(home / "elsewhere")
        case "directory":
            path.mkdir()
        case _:
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(ForeignPathError, match="remove it, and the next start makes one"):
        load_secret(path, lambda: b"secret")
    assert path.lstat() == before
    assert [entry.name for entry in home.iterdir()] == ["secret"]


# Bad files


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_record_counts_as_missing_and_can_be_written_anew(home: Path, kind: str) -> None:
    class Record(msgspec.Struct):
        version: int
        socket: str = ""

    path = home / "record.json"
    put_bad_file(kind, path)
    assert read_record(path, Record) is None
    write_atomically(path, b'{"version": 1}')
    assert read_record(path, Record) == Record(1)
    aside = [entry for entry in home.iterdir() if entry.name.endswith(".aside")]
    assert len(aside) == (kind in {"a directory", "a full directory"})
    assert all(sorted(entry.name for entry in found.iterdir()) in ([], ["something"]) for found in aside)


def test_a_record_that_may_not_be_read_counts_as_missing(home: Path) -> None:
    path = home / "record.json"
    path.write_text("[]")
    path.chmod(0)
    assert read_record(path, list) == ([] if os.getuid() == 0 else None)


# Threads


async def cancelled_often(call: Callable[[Callable[[], None]], Awaitable[None]]) -> list[str]:
    """Cancel a call again and again while its thread is at work; return what happened, in order."""
    events: list[str] = []
    started, gate = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        gate.wait(60)
        events.append("work done")

    async def caller() -> None:
        try:
            await call(work)
        finally:
            events.append("lock released")

    task = asyncio.ensure_future(caller())
    await asyncio.to_thread(started.wait)
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    gate.set()
    await asyncio.wait([task])
    assert task.cancelled(), "the cancel is delivered afterwards"
    return events


async def test_work_in_a_thread_is_finished_however_often_its_caller_is_cancelled() -> None:
    assert await cancelled_often(run_in_thread) == ["work done", "lock released"]


async def test_work_in_a_thread_of_ones_own_is_finished_too() -> None:
    with ThreadPoolExecutor(1) as own:
        assert await cancelled_often(lambda work: run_in_thread(work, own)) == ["work done", "lock released"]


def test_work_in_a_thread_is_finished_before_an_event_loop_ends() -> None:
    events: list[str] = []
    started, gate = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        gate.wait(60)
        events.append("work done")

    async def caller() -> None:
        try:
            await run_in_thread(work)
        finally:
            events.append("lock released")

    async def main() -> None:
        task = asyncio.create_task(caller())
        await asyncio.to_thread(started.wait)
        asyncio.get_running_loop().call_later(0.1, gate.set)
        assert not task.done()

    asyncio.run(main())
    assert events == ["work done", "lock released"]


async def test_an_error_that_comes_after_the_cancel_is_not_told_by_asyncio() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    started, gate = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        gate.wait(60)
        raise OSError("the disk is full")

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(started.wait)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    await asyncio.sleep(0)
    assert told == []
