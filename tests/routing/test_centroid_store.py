"""A centroid set is installed whole or not at all, and a restart restores the installed set."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from runed.domain.requests import Centroid, CentroidHeader
from runed.errors import (
    BadCentroidsError,
    CentroidStoreError,
    DeadlineExceededError,
    NoCentroidSetError,
    QueueFullError,
    RunedError,
)
from runed.routing import store as centroid_store
from runed.routing.centroids import MAX_SET_BYTES, CentroidSet, Content, Matrix, block_rows
from runed.routing.set_file import PAGE_BYTES, IncomingFile
from runed.routing.store import MAX_NAME_BYTES, CentroidStore
from tests.bad_files import BAD_FILES, put_bad_file
from tests.support import capture_logs

DIM = 8
MODEL = "sha256:0123456789abcdef"


def values(count: int = 20, *, seed: int = 1, dim: int = DIM) -> Matrix:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype("<f4")


def header(count: int = 20, *, version: str = "", dim: int = DIM, preset: str = "") -> CentroidHeader:
    return CentroidHeader(version=version, dim=dim, nlist=count, preset=preset)


def version_of(matrix: Matrix, preset: str = "") -> str:
    content = Content(dim=matrix.shape[1], nlist=len(matrix), preset=preset)
    content.update(matrix)
    return content.version


def centroids(matrix: Matrix) -> list[Centroid]:
    return [Centroid(number, row.tobytes()) for number, row in enumerate(matrix)]


async def sent(*batches: Iterable[Centroid]) -> AsyncIterator[Iterable[Centroid]]:
    for batch in batches:
        await asyncio.sleep(0)
        yield batch


async def install(store: CentroidStore, matrix: Matrix, *, preset: str = "", version: str = "") -> str:
    rows = centroids(matrix)
    told = header(len(matrix), version=version, dim=matrix.shape[1], preset=preset)
    return await store.install(told, sent(rows[:3], [], rows[3:]))


def nearest(store: CentroidStore, matrix: Matrix) -> list[int]:
    return store.current().nearest(matrix)


@pytest.fixture
def path(home: Path) -> Path:
    return home / "cache" / "centroids.bin"


@pytest.fixture
def open_store(path: Path) -> Callable[..., CentroidStore]:
    """Open the store of the home as a starting daemon does, by default with the same model."""

    def start(*, dim: int = DIM, model: str = MODEL) -> CentroidStore:
        store = CentroidStore(path, dim=dim, model=model)
        store.restore()
        return store

    return start


Open = Callable[..., CentroidStore]


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def mode_and_size(path: Path) -> tuple[int, int]:
    info = path.stat()
    return stat.S_IMODE(info.st_mode), info.st_size


def block(path: Path) -> None:
    """Make a directory in the place of the file."""
    path.mkdir(parents=True)


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


# Whole


async def test_installed_set_is_served_and_restored(open_store: Open, path: Path) -> None:
    store = open_store()
    with pytest.raises(NoCentroidSetError, match="push one with SetCentroids"):
        store.current()
    assert store.version == ""
    matrix = values()
    assert await install(store, matrix, preset="k20") == store.version == version_of(matrix, "k20")
    assert nearest(store, matrix) == nearest(open_store(), matrix)
    assert open_store().version == store.version
    assert files(path) == ["centroids.bin"]
    assert mode_and_size(path) == (0o600, PAGE_BYTES + matrix.nbytes)


async def test_blocks_do_not_depend_on_messages(open_store: Open) -> None:
    dim = 4096
    rows = block_rows(dim)
    matrix = values(2 * rows + 5, dim=dim)
    store = open_store(dim=dim)
    await store.install(header(len(matrix), dim=dim), sent(*([centroid] for centroid in centroids(matrix))))
    assert store.version == version_of(matrix)
    assert np.array_equal(store.current()._values, matrix)
    assert np.array_equal(open_store(dim=dim).current()._values, matrix)


async def test_another_set_takes_its_place_and_calls_in_flight_keep_the_old_one(open_store: Open) -> None:
    store = open_store()
    first, second = values(20, seed=1), values(300, seed=2)
    await install(store, first)
    held = store.current()
    await install(store, second)
    assert held.version == version_of(first)
    assert np.array_equal(held._values, first)
    assert np.array_equal(store.current()._values, second)
    assert open_store().version == version_of(second)


# Names


async def test_version_is_checked_with_a_preset_and_taken_as_it_is_without(open_store: Open) -> None:
    store = open_store()
    matrix = values()
    right = version_of(matrix, "k20")
    assert await install(store, matrix, preset="k20", version=right) == right
    with pytest.raises(BadCentroidsError, match="is not that of the received content") as caught:
        await install(store, values(seed=2), preset="k20", version=right)
    assert caught.value.metadata == {"version": right, "computed": version_of(values(seed=2), "k20")}
    with pytest.raises(BadCentroidsError):
        await install(store, matrix, preset="k21", version=right)
    assert store.version == right
    assert await install(store, matrix, version="mine") == "mine"
    assert open_store().version == "mine"
    assert await install(store, matrix) == version_of(matrix)


# Not at all

REFUSED: dict[str, tuple[CentroidHeader, list[Centroid], str, dict[str, str]]] = {
    "another dimension": (
        header(dim=4),
        [],
        "have 4 values each, but the vectors of this model have 8",
        {"dim": "4", "model_dim": "8"},
    ),
    "none": (header(0), [], "1 to 8388608 centroids, not 0", {"nlist": "0", "limit": str(MAX_SET_BYTES // 32)}),
    "too many": (
        header(MAX_SET_BYTES // 32 + 1),
        [],
        "not 8388609",
        {"nlist": str(MAX_SET_BYTES // 32 + 1), "limit": str(MAX_SET_BYTES // 32)},
    ),
    "long preset": (header(preset="é" * 129), [], "the preset of the set is too long", {"limit": str(MAX_NAME_BYTES)}),
    "NUL in the preset": (header(preset="a\0b"), [], "or has a NUL", {"limit": str(MAX_NAME_BYTES)}),
    "long version": (header(version="x" * 257), [], "the version of the set is too long", {"limit": str(MAX_NAME_BYTES)}),
    "too few": (header(21), centroids(values()), "ended after 20 of 21", {"nlist": "21", "received": "20"}),
    "one more": (header(19), centroids(values()), "more centroids came than the 19", {"nlist": "19"}),
    "none came": (header(), [], "ended after 0 of 20", {"nlist": "20", "received": "0"}),
    "a gap": (header(), centroids(values())[1:], "centroid 1 came where 0 was next", {"id": "1", "expected": "0"}),
    "twice the same": (
        header(),
        [*centroids(values())[:2], *centroids(values())[1:]],
        "centroid 1 came where 2 was next",
        {"id": "1", "expected": "2"},
    ),
    "short vector": (
        header(),
        [*centroids(values())[:4], Centroid(4, bytes(28))],
        "centroid 4 has 7 values, not 8",
        {"id": "4", "values": "7", "dim": "8"},
    ),
    "long vector": (header(), [Centroid(0, bytes(36))], "centroid 0 has 9 values", {"id": "0", "values": "9", "dim": "8"}),
    "no vector": (header(), [Centroid(0, b"")], "centroid 0 has 0 values", {"id": "0", "values": "0", "dim": "8"}),
    "infinite": (
        header(),
        [*centroids(values())[:19], Centroid(19, np.array([np.inf, *[0] * 7], "<f4").tobytes())],
        "centroid 19 has a value that is infinite",
        {"id": "19"},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_set_of_this_model_is_refused_and_the_old_one_stays(case: str, open_store: Open, path: Path) -> None:
    told, rows, message, metadata = REFUSED[case]
    store = open_store()
    kept = await install(store, values(seed=9))
    with pytest.raises(BadCentroidsError, match=message) as caught:
        await store.install(told, sent(rows))
    assert caught.value.metadata == metadata
    assert store.version == kept
    assert np.array_equal(store.current()._values, values(seed=9))
    assert files(path) == ["centroids.bin"]
    assert open_store().version == kept


async def test_sender_that_breaks_off_leaves_the_old_one(open_store: Open, path: Path) -> None:
    async def broken() -> AsyncIterator[Iterable[Centroid]]:
        yield centroids(values())
        raise RunedError("the client is gone")

    store = open_store()
    kept = await install(store, values(seed=9))
    with pytest.raises(RunedError, match="gone"):
        await store.install(header(21), broken())
    assert store.version == kept
    assert files(path) == ["centroids.bin"]


async def test_cancelled_sender_leaves_the_old_one(open_store: Open, path: Path) -> None:
    async def silent() -> AsyncIterator[Iterable[Centroid]]:
        yield centroids(values())
        waiting.set()
        await asyncio.Event().wait()

    waiting = asyncio.Event()
    store = open_store()
    kept = await install(store, values(seed=9))
    task = asyncio.create_task(store.install(header(21), silent()))
    await waiting.wait()
    assert len(files(path)) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.version == kept
    assert files(path) == ["centroids.bin"]
    assert await install(store, values()) == version_of(values())


async def test_cancelled_while_it_is_put_into_place_agrees_with_the_disk(open_store: Open) -> None:
    store = open_store()
    await install(store, values(seed=9))

    async def cancelling() -> AsyncIterator[Iterable[Centroid]]:
        yield centroids(values())
        asyncio.get_running_loop().call_soon(task.cancel)  # comes while `install` waits for its thread

    task = asyncio.create_task(store.install(header(), cancelling()))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_store().version == store.version


async def test_disk_that_takes_nothing_is_told(open_store: Open, path: Path) -> None:
    store = open_store()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond, as on a full disk
    try:
        with pytest.raises(CentroidStoreError, match=r"cannot be kept in .*/cache: File too large; the set before it stays"):
            await install(store, values())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.version == ""
    assert files(path) == []


# One at a time


async def test_two_senders_take_turns(open_store: Open, path: Path) -> None:
    async def slow() -> AsyncIterator[Iterable[Centroid]]:
        waiting.set()
        await go.wait()
        yield centroids(values())

    waiting, go = asyncio.Event(), asyncio.Event()
    store = open_store()
    first = asyncio.create_task(store.install(header(), slow()))
    await waiting.wait()
    second = asyncio.create_task(install(store, values(seed=2)))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(files(path)) == 1  # only the first push has begun
    assert not second.done()
    go.set()
    assert await first == version_of(values())
    assert await second == version_of(values(seed=2)) == store.version


async def test_waiting_for_a_turn_has_an_end(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck() -> AsyncIterator[Iterable[Centroid]]:
        waiting.set()
        await asyncio.Event().wait()
        yield []

    waiting = asyncio.Event()
    monkeypatch.setattr(centroid_store, "TURN_SECONDS", 0.01)
    store = open_store()
    first = asyncio.create_task(store.install(header(), stuck()))
    await waiting.wait()
    with pytest.raises(QueueFullError) as caught:
        await install(store, values())
    assert caught.value.retry_after == centroid_store.RETRY_SECONDS
    first.cancel()
    await asyncio.wait([first])
    assert await install(store, values()) == version_of(values())


async def test_sender_that_trickles_is_told_to_hurry(open_store: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickling() -> AsyncIterator[Iterable[Centroid]]:
        while True:
            await asyncio.sleep(0)
            yield []

    monkeypatch.setattr(centroid_store, "RECEIVE_SECONDS", 0.05)
    store = open_store()
    with pytest.raises(DeadlineExceededError, match=r"did not come within 0\.05 s"):
        await store.install(header(), trickling())
    assert files(path) == []
    assert await install(store, values()) == version_of(values())


async def test_sets_that_come_one_after_the_other_do_not_fill_the_log(open_store: Open) -> None:
    store = open_store()
    with capture_logs() as logs:
        for number in range(5):
            await install(store, values(), version=str(number))
    assert len([entry for entry in logs if entry["event"] == "centroid set installed"]) < 5


# Restarts


async def refused(open_store: Open, path: Path, **model: object) -> str:
    """Restore, and return the reason of the refusal. Check that the file is gone and that the store goes on."""
    with capture_logs() as logs:
        store = open_store(**model)
    assert store.version == ""
    with pytest.raises(NoCentroidSetError):
        store.current()
    assert files(path) == []
    assert [entry["log_level"] for entry in logs] == ["warning"]
    matrix = values(dim=store._dim)
    assert await install(store, matrix) == version_of(matrix)
    return str(logs[0]["problem"])


@pytest.mark.parametrize("place", [0, 40, 150, PAGE_BYTES, PAGE_BYTES + 3, -1])
async def test_damage_anywhere_is_never_served(place: int, open_store: Open, path: Path) -> None:
    await install(open_store(), values(), preset="k20")

    def flip(data: bytes) -> bytes:
        at = place % len(data)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    change(path, flip)
    assert await refused(open_store, path)


@pytest.mark.parametrize("field", ["format", "model", "version", "dim", "nlist", "preset", "checksum"])
async def test_no_field_of_the_description_can_be_changed(field: str, open_store: Open, path: Path) -> None:
    await install(open_store(), values(), preset="k20")

    def edit(data: bytes) -> bytes:
        description = msgspec.json.decode(data[:PAGE_BYTES])
        description[field] = f"{description[field]}0" if isinstance(description[field], str) else description[field] + 1
        return msgspec.json.encode(description).ljust(PAGE_BYTES) + data[PAGE_BYTES:]

    change(path, edit)
    assert await refused(open_store, path)


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 639, PAGE_BYTES + 641])
async def test_file_of_another_length_is_refused(size: int, open_store: Open, path: Path) -> None:
    await install(open_store(), values())
    change(path, lambda data: (data + b"\0")[:size])
    assert await refused(open_store, path)


async def test_set_of_another_model_is_refused(open_store: Open, path: Path) -> None:
    await install(open_store(), values())
    assert await refused(open_store, path, model="sha256:fedcba9876543210") == "it is for another model"


async def test_set_of_another_dimension_is_refused(open_store: Open, path: Path) -> None:
    await install(open_store(), values())
    assert await refused(open_store, path, dim=16) == "it is for another model"


async def test_what_a_killed_daemon_left_is_swept_up(open_store: Open, path: Path) -> None:
    kept = await install(open_store(), values())
    incoming = IncomingFile(path, header(), model=MODEL)
    incoming.append(values(seed=2)[:7])
    incoming._new.file.close()
    assert len(files(path)) == 2
    assert open_store().version == kept
    assert files(path) == ["centroids.bin"]


async def test_file_that_cannot_be_read_is_told_and_left(open_store: Open, path: Path) -> None:
    block(path)
    with capture_logs() as logs:
        assert open_store().version == ""
    assert logs[0]["problem"] == "Is a directory"
    assert files(path) == ["centroids.bin"]


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_anything_in_the_place_of_the_file_counts_as_no_set(kind: str, open_store: Open, path: Path) -> None:
    put_bad_file(kind, path)
    store = open_store()
    assert store.version == ""
    assert await install(store, values()) == version_of(values())
    assert open_store().version == store.version


@pytest.mark.parametrize("size", [0, PAGE_BYTES, PAGE_BYTES + 100])
async def test_a_file_that_is_shortened_while_it_is_served_harms_nobody(open_store: Open, path: Path, size: int) -> None:
    matrix = values(3000, dim=512)
    pushed = open_store(dim=512)
    await install(pushed, matrix)
    restored = open_store(dim=512)
    os.truncate(path, size)
    for store in (pushed, restored):  # a mapped file would end this process by SIGBUS
        assert nearest(store, matrix[:2]) == CentroidSet(matrix, version="", max_norm=100.0).nearest(matrix[:2])
    assert open_store(dim=512).version == ""
