"""The disk cache survives kill -9, reveals nothing and keeps to its bound. Trouble with its file never reaches a caller."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

from runed.caching import disk_cache
from runed.caching.cache import VectorCache
from runed.caching.disk_cache import MAX_PENDING_BYTES, MAX_USED_KEYS, MIN_DISK_BYTES, DiskCache
from runed.caching.entry import CachedVector
from runed.caching.vector_file import EVICTION_ROWS, PAGE_BYTES, RECENCY_SECONDS, SPARE_BYTES
from tests.bad_files import BAD_FILES, put_bad_file
from tests.fakes import vector_writer
from tests.fakes.vector_writer import key_of, open_cache, value_of
from tests.support import capture_logs

WRITER = [sys.executable, vector_writer.__file__]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the timeouts so that a busy machine finds every entry, and nothing is written before a test asks for it."""
    monkeypatch.setattr(disk_cache, "READ_SECONDS", 60)
    monkeypatch.setattr(disk_cache, "WRITE_DELAY", 3600)


def file_of(directory: Path) -> Path:
    return directory / "cache" / "vectors.sqlite"


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes of the file and of all files beside it."""
    return sum(path.stat().st_size for path in file_of(directory).parent.iterdir() if path.suffix != ".lock")


def put(disk: DiskCache, *numbers: int, dim: int = vector_writer.DIM) -> None:
    for number in numbers:
        disk.put(key_of(number), value_of(number, dim))


async def numbers_in(disk: DiskCache, numbers: range, dim: int = vector_writer.DIM) -> set[int]:
    """Return the numbers that are in the cache, and check that each vector is the one written."""
    found: dict[bytes, CachedVector] = {}
    for start in range(0, len(numbers), 1000):  # as many at once as a batch has
        found |= await disk.get([key_of(number) for number in numbers[start : start + 1000]])
    assert all(found[key_of(number)] == value_of(number, dim) for number in numbers if key_of(number) in found)
    return {number for number in numbers if key_of(number) in found}


async def make(directory: Path, *numbers: int) -> None:
    """Make a closed file with these entries."""
    disk = open_cache(directory)
    put(disk, *numbers)
    await disk.close()


def edit(directory: Path, statement: str, *values: object) -> int:
    with closing(sqlite3.connect(file_of(directory))) as connection, connection:
        return connection.execute(statement, values).rowcount


@contextmanager
def hanging(disk: DiskCache) -> Iterator[None]:
    """Let the disk not answer inside the block."""
    gate = threading.Event()
    disk._thread.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


# Stored vectors are found


async def test_vectors_outlive_the_process_that_put_them(tmp_path: Path) -> None:
    await make(tmp_path, *range(200))
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(300)) == set(range(200))
    assert await disk.get([]) == {}
    assert await disk.get([key_of(5), key_of(5)]) == {key_of(5): value_of(5)}
    assert disk.active
    assert disk.size == bytes_on_disk(tmp_path)
    await disk.close()


async def test_what_waits_to_be_written_is_there_too(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(300))
    assert await numbers_in(disk, range(400)) == set(range(300))
    flushing = asyncio.create_task(disk.flush())
    while not flushing.done():  # it ends, whatever the readers do
        assert await numbers_in(disk, range(400)) == set(range(300))
    assert await numbers_in(disk, range(400)) == set(range(300))
    await disk.close()


async def test_vectors_are_written_soon_without_being_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "WRITE_DELAY", 0.01)
    disk = open_cache(tmp_path)
    put(disk, 1)
    assert disk._writer is not None
    await disk._writer
    assert not disk._pending
    assert await numbers_in(disk, range(3)) == {1}
    await disk.close()


async def test_a_vector_put_again_is_replaced(tmp_path: Path) -> None:
    await make(tmp_path, 1)
    disk = open_cache(tmp_path)
    disk.put(key_of(1), value_of(2))
    await disk.close()
    disk = open_cache(tmp_path)
    assert await disk.get([key_of(1)]) == {key_of(1): value_of(2)}
    await disk.close()


async def test_closing_twice_and_using_what_is_closed_does_nothing(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, 1)
    await disk.close()
    await disk.close()
    put(disk, 2)
    disk.touch([key_of(1)])
    await disk.flush()
    assert await numbers_in(disk, range(3)) == set()
    assert not disk.active


async def test_a_caller_that_goes_takes_nothing_with_it(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(500))
    with hanging(disk):
        going = [asyncio.create_task(disk.flush()), asyncio.create_task(disk.get([key_of(1000)]))]
        while len(disk._pending) == 500:  # noqa: ASYNC110 # until the first part waits for the thread: some turns of the loop, no time
            await asyncio.sleep(0)
        for task in going:
            task.cancel()
        await asyncio.wait(going)
    await disk.close()
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(600)) == set(range(500))
    await disk.close()


async def test_a_close_that_is_cancelled_again_and_again_still_lets_go_of_the_file(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, 1)
    await disk.flush()
    with hanging(disk):
        closing_it = asyncio.create_task(disk.close())
        for _ in range(3):
            await asyncio.sleep(0.01)
            closing_it.cancel()
        await asyncio.sleep(0.01)
        assert not closing_it.done(), "the file is still open"
    await asyncio.wait([closing_it])
    assert closing_it.cancelled()
    with capture_logs() as logs:
        successor = open_cache(tmp_path)
        assert await numbers_in(successor, range(3)) == {1}
        await successor.close()
    assert logs == []


def test_a_bound_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(MIN_DISK_BYTES)):
        open_cache(tmp_path, max_bytes=MIN_DISK_BYTES - 1)


# kill -9


def write_until_killed(directory: Path, start: int, chance: random.Random) -> int:
    """Run a writer for a moment, and return the number up to which everything was flushed."""
    with Popen([*WRITER, str(directory), str(start)], stdout=PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        flushed = [int(process.stdout.readline()) for _ in range(chance.randint(1, 20))]
        time.sleep(chance.random() / 100)  # at any point of a transaction
        process.kill()
        return [*flushed, *map(int, process.stdout.read().splitlines())][-1]


@pytest.mark.slow
async def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    """Eight writers run one after the other. Together they write more than fits, so that entries are removed, too."""
    chance = random.Random(0)
    written = 0
    for _ in range(8):
        written = await asyncio.to_thread(write_until_killed, tmp_path, written, chance)
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "cache", copy)
        with closing(sqlite3.connect(copy / "vectors.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            kept = connection.execute("SELECT count(*) FROM vector").fetchone()[0]
        shutil.rmtree(copy)
        disk = open_cache(tmp_path)
        found = await numbers_in(disk, range(written + 10 * vector_writer.STEP))
        assert kept - 2 * EVICTION_ROWS <= len(found) <= kept  # opening makes room for new entries
        assert found >= set(range(max(0, written - 1000), written)), "what was flushed is gone"
        assert bytes_on_disk(tmp_path) <= MIN_DISK_BYTES
        await disk.close()
    assert written > 5000


# The file reveals nothing


async def test_only_its_owner_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        disk = open_cache(tmp_path / "home")
        put(disk, 1)
        await disk.flush()
        files = list((tmp_path / "home").rglob("*"))
        assert {path.name for path in files} == {
            "cache", "secret", "vectors.sqlite", "vectors.sqlite-wal", "vectors.sqlite.lock"
        }  # fmt: skip
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        assert modes.pop("cache") == 0o700
        assert set(modes.values()) == {0o600}
        await disk.close()
    finally:
        os.umask(umask)


async def test_modes_that_are_too_wide_are_narrowed(tmp_path: Path) -> None:
    await make(tmp_path, 1)
    for path in (file_of(tmp_path), tmp_path / "secret"):
        path.chmod(0o666)
    await make(tmp_path, 2)
    for path in (file_of(tmp_path), tmp_path / "secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_no_key_can_be_found_in_the_file(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(50))
    await disk.flush()
    stored = b"".join(path.read_bytes() for path in file_of(tmp_path).parent.iterdir())
    assert len(stored) > 50 * 1536
    assert not any(key_of(number) in stored for number in range(50))
    assert (tmp_path / "secret").read_bytes() not in stored
    await disk.close()


@pytest.mark.parametrize("content", [b"", b"half a secret", bytes(33)])
async def test_a_secret_that_is_not_whole_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    await make(tmp_path, 1)
    secret = path.read_bytes()
    assert len(secret) == 32
    assert secret != content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(3)) == {1}
    await disk.close()
    assert path.read_bytes() == secret


# Several spaces


async def test_vectors_of_several_models_stay_and_go_by_their_use_alone(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    for fingerprint, value in (("one", 0), ("another", 1)):
        for number in range(1500):
            disk.put(key_of(number, fingerprint), value_of(number + value))
        await disk.flush()
    await disk.close()
    assert edit(tmp_path, "UPDATE vector SET used = used - ?", RECENCY_SECONDS + 1) == 3000

    disk = open_cache(tmp_path)  # of the first model again
    assert await disk.get([key_of(7, "one")]) == {key_of(7, "one"): value_of(7)}
    assert await disk.get([key_of(7, "another")]) == {key_of(7, "another"): value_of(8)}
    disk.touch([key_of(number, fingerprint) for number in range(100) for fingerprint in ("one", "another")])
    await disk.flush()
    for start in range(5000, 7000, 500):
        put(disk, *range(start, start + 500))
        await disk.flush()
    assert bytes_on_disk(tmp_path) <= MIN_DISK_BYTES
    used = [key_of(number, fingerprint) for number in range(100) for fingerprint in ("one", "another")]
    assert set(await disk.get(used)) == set(used)
    old = [key_of(number, fingerprint) for number in range(100, 700) for fingerprint in ("one", "another")]
    assert {key for key in await disk.get(old) if key in old[::2]} == set(), "the older model's go first"
    assert await numbers_in(disk, range(5000, 7000)) == set(range(5000, 7000))
    await disk.close()


VERSION_1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE about (identity BLOB NOT NULL);
CREATE TABLE vector (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX vector_used ON vector (used);
INSERT INTO about VALUES (randomblob(32));
INSERT INTO vector (key, used, value) VALUES (randomblob(32), 1, randomblob(1564)), (randomblob(32), 2, randomblob(1564));
PRAGMA user_version = 1;
"""
"""A file of the version that masked vectors, and held the vectors of one model only."""


async def test_a_file_of_version_1_begins_anew_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    with closing(sqlite3.connect(file_of(tmp_path))) as connection:
        connection.executescript(VERSION_1)
    with capture_logs() as logs:
        disk = open_cache(tmp_path)
        put(disk, 1)
        await disk.flush()
        assert await numbers_in(disk, range(3)) == {1}
        assert disk.active
        await disk.close()
    assert [line["log_level"] for line in logs] == ["info"]
    with closing(sqlite3.connect(file_of(tmp_path))) as connection:
        assert connection.execute("SELECT count(*) FROM vector").fetchone() == (1,)


async def test_another_secret_empties_it(tmp_path: Path) -> None:
    await make(tmp_path, *range(2000))
    (tmp_path / "secret").unlink()
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(2000)) == set()
    assert bytes_on_disk(tmp_path) < 100_000
    await disk.close()


# The bound


@pytest.mark.slow
@pytest.mark.parametrize("dim", [128, 1024, 4096, 32768])
async def test_the_files_never_outgrow_the_bound(tmp_path: Path, dim: int) -> None:
    disk = open_cache(tmp_path)
    count, step = 16 * 1024 * 1024 // (4 * dim + 100), max(60, 200_000 // dim)
    count -= count % step
    for start in range(0, count, step):
        put(disk, *range(start, start + step), dim=dim)
        await disk.flush()
        disk.touch(map(key_of, range(0, start, 50)))
        assert bytes_on_disk(tmp_path) <= MIN_DISK_BYTES
    found = await numbers_in(disk, range(count), dim)
    assert found == set(range(min(found), count)), "the newest stay"
    assert min(found) > 0
    assert len(found) * 4 * dim > 0.45 * (MIN_DISK_BYTES - SPARE_BYTES), "room is wasted"
    await disk.close()


async def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    await make(tmp_path, *range(2000))
    assert edit(tmp_path, "UPDATE vector SET used = used - ?", RECENCY_SECONDS + 1) == 2000

    cache = VectorCache(200 * value_of(0).size, open_cache(tmp_path))
    disk = cache._disk
    assert disk is not None
    await cache.get([key_of(number) for number in range(100)])  # from the disk
    assert edit_blocked(tmp_path)
    await disk.flush()
    disk.touch(map(key_of, range(100, 200)))
    for start in range(2000, 5000, 500):
        put(disk, *range(start, start + 500))
        await disk.flush()
    found = await numbers_in(disk, range(5000))
    assert set(range(200)) <= found
    assert not set(range(200, 500)) & found
    assert set(range(2000, 5000)) <= found
    await cache.close()


def edit_blocked(directory: Path) -> bool:
    """Return whether another connection is refused while the cache has the file open."""
    with (
        pytest.raises(sqlite3.OperationalError, match="locked"),
        closing(sqlite3.connect(file_of(directory), timeout=0)) as connection,
    ):
        connection.execute("SELECT count(*) FROM vector")
    return True


async def test_hits_in_memory_count_as_use_on_disk(tmp_path: Path) -> None:
    await make(tmp_path, *range(10))
    cache = VectorCache(1 << 20, open_cache(tmp_path))
    await cache.get([key_of(3), key_of(4)])
    await cache.close()
    edit(tmp_path, "UPDATE vector SET used = used - ?", RECENCY_SECONDS + 1)

    cache = VectorCache(1 << 20, open_cache(tmp_path))
    cache.put(key_of(3), value_of(3))
    assert cache._disk is not None
    await cache._disk.flush()
    cache._disk._used.clear()
    await cache.get([key_of(3)])
    assert cache._disk._used == {key_of(3)}
    await cache.close()
    with closing(sqlite3.connect(file_of(tmp_path))) as connection:
        assert connection.execute("SELECT count(*) FROM vector WHERE used > ?", (time.time() - 60,)).fetchone() == (1,)


async def test_uses_wait_in_bounds_and_are_written_without_a_vector(tmp_path: Path) -> None:
    await make(tmp_path, 1)
    edit(tmp_path, "UPDATE vector SET used = used - ?", RECENCY_SECONDS + 1)
    disk = open_cache(tmp_path)
    disk.touch([key_of(1)])
    for number in range(3 * MAX_USED_KEYS):
        disk.touch([key_of(number)])
    assert len(disk._used) == MAX_USED_KEYS
    await disk.flush()
    assert not disk._used
    await disk.close()
    with closing(sqlite3.connect(file_of(tmp_path))) as connection:
        assert connection.execute("SELECT count(*) FROM vector WHERE used > ?", (time.time() - 60,)).fetchone() == (1,)


async def test_vectors_of_a_time_to_come_go_before_newer_ones(tmp_path: Path) -> None:
    """A clock that was years ahead, and was set right, let no new vector stay."""
    await make(tmp_path, *range(3000))
    assert edit(tmp_path, "UPDATE vector SET used = used + ?", 70 * 366 * 86400) == 3000
    disk = open_cache(tmp_path)
    for start in range(4000, 8000, 500):
        put(disk, *range(start, start + 500))
        await disk.flush()
    newest = [key_of(number) for number in range(7000, 8000)]
    assert set(await disk.get(newest)) == set(newest)
    await disk.close()


async def test_a_damaged_time_of_use_is_of_no_consequence(tmp_path: Path) -> None:
    await make(tmp_path, 1, 2)
    assert edit(tmp_path, "UPDATE vector SET used = ? WHERE id = 1", b"\xff") == 1
    disk = open_cache(tmp_path)
    disk.touch([key_of(1)])
    put(disk, 3)
    await disk.flush()
    assert await numbers_in(disk, range(4)) == {1, 2, 3}
    await disk.close()


async def test_a_file_larger_than_a_new_bound_shrinks(tmp_path: Path) -> None:
    disk = open_cache(tmp_path, max_bytes=4 * MIN_DISK_BYTES)
    for start in range(0, 12_000, 1000):
        put(disk, *range(start, start + 1000))
        await disk.flush()
    await disk.close()
    assert bytes_on_disk(tmp_path) > MIN_DISK_BYTES + 4_000_000
    disk = open_cache(tmp_path)
    await disk.get([key_of(0)])
    assert bytes_on_disk(tmp_path) <= MIN_DISK_BYTES - SPARE_BYTES, "while it is open too"
    found = await numbers_in(disk, range(12_000))
    assert found == set(range(min(found), 12_000))
    assert len(found) > 3000
    await disk.close()


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE vector SET value = substr(value, 1, 20) || x'00' || substr(value, 22) WHERE id <= 2",
        "UPDATE vector SET value = substr(value, 1, length(value) - 4) WHERE id <= 2",
        "UPDATE vector SET value = x'' WHERE id <= 2",
        "UPDATE vector SET value = 5 WHERE id <= 2",
        "UPDATE vector SET value = CAST(x'ff00fe' AS TEXT) WHERE id <= 2",
        "UPDATE vector SET value = (SELECT value FROM vector WHERE id = 3) WHERE id <= 2",
        "UPDATE vector SET used = 'never' WHERE id <= 2",
    ],
)
async def test_a_damaged_row_is_absent_until_it_is_put_again(tmp_path: Path, damage: str) -> None:
    await make(tmp_path, *range(10))
    assert edit(tmp_path, damage) == 2
    disk = open_cache(tmp_path)
    there = set(range(10)) if "used" in damage else set(range(2, 10))
    assert await numbers_in(disk, range(10)) == there
    put(disk, 0, 1)
    await disk.close()
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(10)) == set(range(10))
    await disk.close()


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(50_000))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def other_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def other_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE about")


def other_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE vector RENAME COLUMN value TO vector")


def garbled_schema(path: Path) -> None:
    """SQLite's message quotes the name of the table, which Python cannot decode."""
    path.write_bytes(path.read_bytes().replace(b"vectorvector", b"\xffectorvector", 1))


def stale_log(path: Path) -> None:
    """The log of another file of the same name. SQLite would read it if it were not removed with its file."""
    garbage(path)
    path.with_name("vectors.sqlite-wal").write_bytes(random.Random(1).randbytes(50_000))


@pytest.mark.parametrize(
    "damage", [garbage, cut_short, empty, other_version, other_tables, other_table, garbled_schema, stale_log]
)
async def test_a_file_that_cannot_be_used_is_replaced(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    await make(tmp_path, *range(500))
    damage(file_of(tmp_path))
    with capture_logs() as logs:
        disk = open_cache(tmp_path)
        await numbers_in(disk, range(500))
        put(disk, *range(500, 600))
        await disk.flush()
        put(disk, *range(600, 700))
        await disk.flush()
        found = await numbers_in(disk, range(700))
    assert found >= set(range(600, 700))
    assert disk.active
    assert len(logs) == 1, logs
    assert str(tmp_path) not in str(logs)
    await disk.close()
    with closing(sqlite3.connect(file_of(tmp_path))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def scramble(path: Path) -> None:
    """Damage all pages except the first ones, while the file is open."""
    with path.open("r+b") as file:
        for page in range(12, path.stat().st_size // PAGE_BYTES, 2):
            file.seek(page * PAGE_BYTES)
            file.write(b"\xff" * 64)


async def test_damage_under_way_is_repaired_once_and_then_given_up(tmp_path: Path) -> None:
    count = 6000
    disk = open_cache(tmp_path, max_bytes=4 * MIN_DISK_BYTES)
    with capture_logs() as logs:
        for remaining in (True, False):
            put(disk, *range(count // 2))
            await disk.flush()
            put(disk, *range(count // 2, count))
            await disk.flush()
            assert await numbers_in(disk, range(count)) == set(range(count))
            scramble(file_of(tmp_path))
            while disk.active and await numbers_in(disk, range(count)):
                pass
            assert disk.active == remaining
    assert [line["event"] for line in logs] == ["the disk cache is damaged and begins anew", "the disk cache is given up"]
    put(disk, 1)
    await disk.flush()
    assert await disk.get([key_of(1)]) == {}
    assert disk.size == 0
    await disk.close()


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_damaged_nothing_wrong_is_given(tmp_path: Path, seed: int) -> None:
    await make(tmp_path, *range(300))
    chance = random.Random(seed)
    with file_of(tmp_path).open("r+b") as file:
        for _ in range(chance.choice([1, 5, 50])):
            file.seek(chance.randrange(file_of(tmp_path).stat().st_size))
            file.write(chance.randbytes(chance.choice([1, 4, 100, 4096])))
    disk = open_cache(tmp_path)
    await numbers_in(disk, range(400))
    put(disk, *range(250, 400))
    disk.touch(map(key_of, range(250)))
    await disk.flush()
    await numbers_in(disk, range(400))
    await disk.close()


# Trouble around the file


async def test_a_second_opener_goes_without(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    put(first, 1)
    await first.flush()
    with capture_logs() as logs:
        second = open_cache(tmp_path)
        assert await numbers_in(second, range(3)) == set()
        put(second, 2)
        await second.close()
    assert [line["event"] for line in logs] == ["the disk cache cannot be opened"]
    put(first, 2)
    await first.flush()
    assert await numbers_in(first, range(3)) == {1, 2}
    await first.close()


async def test_a_file_that_another_program_has_locked_is_left_alone(tmp_path: Path) -> None:
    await make(tmp_path, 1)
    with closing(sqlite3.connect(file_of(tmp_path), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with capture_logs() as logs:
            disk = open_cache(tmp_path)
            assert await numbers_in(disk, range(3)) == set()
            await disk.close()
        assert [(line["event"], line["problem"]) for line in logs] == [("the disk cache cannot be opened", "SQLITE_BUSY")]
        connection.execute("ROLLBACK")
    disk = open_cache(tmp_path)
    assert await numbers_in(disk, range(3)) == {1}
    await disk.close()


async def test_a_full_disk_costs_what_does_not_fit_and_no_more(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(10))
    await disk.flush()
    assert disk._file is not None
    connection = disk._file._connection
    limit = "PRAGMA max_page_count = {}".format
    disk._thread.submit(lambda: connection.execute(limit(1)).fetchall()).result()  # SQLite's own way to be full
    with capture_logs() as logs:
        for start in range(100, 500, 100):
            put(disk, *range(start, start + 100))
            await disk.flush()
            assert set(range(10)) <= await numbers_in(disk, range(500))
    assert [(line["event"], line["problem"]) for line in logs] == [("the disk cache cannot be used", "SQLITE_FULL")]
    disk._thread.submit(lambda: connection.execute(limit(1 << 30)).fetchall()).result()
    put(disk, *range(500, 600))
    await disk.flush()
    assert set(range(10)) | set(range(500, 600)) <= await numbers_in(disk, range(600))
    await disk.close()


async def test_a_write_that_the_system_refuses_costs_only_itself(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *WRITER, str(tmp_path), "0", str(2 * 1024 * 1024), stdout=PIPE, stderr=STDOUT, env=ENVIRONMENT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    assert output.count("cannot be used") == 1, output
    disk = open_cache(tmp_path)
    assert set(range(64)) <= await numbers_in(disk, range(1000))
    await disk.close()


@contextmanager
def without_privileges(directory: Path) -> Iterator[None]:
    """Become the user "nobody", the owner of the directory, if the test runs as root. File modes do not keep root out."""
    if os.getuid() != 0:
        yield
        return
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 65534, 65534)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


async def test_in_a_directory_that_cannot_be_written_there_is_no_cache(home: Path) -> None:
    await make(home, 1)
    (home / "cache").chmod(0o500)
    with without_privileges(home), capture_logs() as logs:
        disk = open_cache(home)
        assert await numbers_in(disk, range(3)) == set()
        assert not disk.active
        put(disk, 2)
        await disk.close()
    assert [line["event"] for line in logs] == ["the disk cache cannot be opened"]
    assert logs[0]["problem"].startswith("SQLITE_")
    (home / "cache").chmod(0o700)


@pytest.mark.parametrize("place", ["cache", "cache/vectors.sqlite.lock", "secret"])
async def test_something_else_in_a_files_place_is_left_there(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if place == "cache":
        (tmp_path / place).write_text("a file")
    else:
        (tmp_path / place).mkdir()
    with capture_logs() as logs:
        disk = open_cache(tmp_path)
        put(disk, 1)
        await disk.flush()
        assert not disk.active
        assert await disk.get([key_of(1)]) == {}
        await disk.close()
    assert [line["event"] for line in logs] == ["the disk cache cannot be opened"]
    assert (tmp_path / place).exists()


async def test_a_file_that_somebody_removes_is_missed_by_nobody(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(100))
    await disk.flush()
    shutil.rmtree(tmp_path / "cache")
    put(disk, *range(100, 200))
    await disk.flush()
    await numbers_in(disk, range(200))
    await disk.close()
    await make(tmp_path, 1)


async def test_a_disk_that_hangs_holds_nobody_up_and_memory_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "READ_SECONDS", 0.2)
    disk = open_cache(tmp_path)
    put(disk, 0)
    await disk.flush()
    with capture_logs() as logs, hanging(disk):
        for number in range(1, 15_000):
            put(disk, number)
            if number % 1000 == 0:
                await asyncio.sleep(0)  # the writer takes its first part, and waits for the thread
        assert sum(value.size for value in disk._pending.values()) == disk._pending_bytes <= MAX_PENDING_BYTES
        assert await numbers_in(disk, range(14_000, 15_000)) == set(range(14_000, 15_000))
        assert await disk.get([key_of(0)]) == {}
        before = time.monotonic()
        for _ in range(100):
            assert await disk.get([key_of(0)]) == {}
        assert time.monotonic() - before < 15, "each reader waits for a disk that is known to hang"
    monkeypatch.setattr(disk_cache, "READ_SECONDS", 60)
    await disk.flush()
    assert [line["event"] for line in logs] == ["the disk cache is slow"]
    assert await numbers_in(disk, range(1)) == {0}
    assert set(range(14_000, 15_000)) <= await numbers_in(disk, range(15_000))
    await disk.close()


async def test_a_failure_that_nobody_foresaw_is_a_miss_too(tmp_path: Path) -> None:
    disk = open_cache(tmp_path)
    put(disk, 1)
    with capture_logs() as logs:
        disk.put(key_of(2), CachedVector(b"", -1, -1))  # a count that does not fit into the file
        await disk.flush()
    assert [(line["event"], line["error_type"]) for line in logs] == [("the disk cache cannot be used", "struct.error")]
    put(disk, 1)
    await disk.flush()
    assert await numbers_in(disk, range(3)) == {1}
    await disk.close()


async def stored(directory: Path, *numbers: int) -> None:
    """Open the cache, put vectors, and close it."""
    disk = open_cache(directory)
    put(disk, *numbers)
    await disk.close()


async def found_anew(directory: Path, numbers: range) -> set[int]:
    """Open the cache, and return the numbers in it."""
    disk = open_cache(directory)
    try:
        return await numbers_in(disk, numbers)
    finally:
        await disk.close()


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("ending", ["", "-wal", "-journal"])
async def test_anything_in_the_place_of_a_file_begins_anew(tmp_path: Path, ending: str, kind: str) -> None:
    await stored(tmp_path, 1)
    put_bad_file(kind, file_of(tmp_path).with_name(f"vectors.sqlite{ending}"))
    await stored(tmp_path, 2)
    assert 2 in await found_anew(tmp_path, range(3))


@pytest.mark.parametrize("size", [0, 10, PAGE_BYTES, 3 * PAGE_BYTES])
async def test_a_file_that_is_shortened_while_it_is_open_harms_nobody(tmp_path: Path, size: int) -> None:
    disk = open_cache(tmp_path)
    put(disk, *range(2000))
    await disk.flush()
    for path in (file_of(tmp_path), file_of(tmp_path).with_name("vectors.sqlite-wal")):
        os.truncate(path, min(size, path.stat().st_size))
    await numbers_in(disk, range(2000))  # whatever is still found is right
    put(disk, 3000)
    await disk.close()
    await stored(tmp_path, 3001)
    assert 3001 in await found_anew(tmp_path, range(3000, 3002))
