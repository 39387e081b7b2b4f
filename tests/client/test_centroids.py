"""`set_centroids` and `with_route` of both clients against a daemon in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import runed
from runed import errors
from tests.client.conftest import Arrange, events, live_descriptors, pids
from tests.support import wait_until

Push = Callable[..., runed.CentroidSet]


def push_blocking(
    home: Path, vectors: ArrayLike, *arguments: str, timeout: float | None = None, spawn: bool = True
) -> runed.CentroidSet:
    with runed.connect(home=home, spawn=spawn) as client:
        return client.set_centroids(vectors, *arguments, timeout=timeout)


def push_by_asyncio(
    home: Path, vectors: ArrayLike, *arguments: str, timeout: float | None = None, spawn: bool = True
) -> runed.CentroidSet:
    async def run() -> runed.CentroidSet:
        async with await runed.connect_async(home=home, spawn=spawn) as client:
            return await client.set_centroids(vectors, *arguments, timeout=timeout)

    return asyncio.run(run())


@pytest.fixture(params=[push_blocking, push_by_asyncio], ids=["blocking", "asyncio"])
def push(request: pytest.FixtureRequest) -> Push:
    """Push a set by one of the two clients."""
    function: Push = request.param
    return function


def matrix(count: int, dim: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal(size=(count, dim), dtype=np.float32)


def digest(values: NDArray[np.float32]) -> str:
    whole = hashlib.sha256()
    for number, row in enumerate(values):
        whole.update(struct.pack(f"<I{len(row)}f", number, *row))
    return whole.hexdigest()


def last_set(home: Path) -> list[str]:
    return [event for event in events(home) if event.startswith("centroids ")][-1].split(" ")[1:]


class TestPush:
    """A set arrives unchanged."""

    def test_every_value_arrives_in_messages_that_every_daemon_takes(self, shared: Path, push: Push) -> None:
        values = matrix(3000, 512)  # 6 MiB
        assert push(shared, values, "k3000", "mine") == runed.CentroidSet(version="set 3000", nlist=3000)
        *told, largest = last_set(shared)
        assert told == ["512", "3000", "k3000", "mine", digest(values)]
        assert 512 * 1024 < int(largest) <= 4 * 1024 * 1024

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_any_table_of_numbers_will_do(self, shared: Path, push: Push, order: str) -> None:
        values = matrix(7)
        laid_out = values.astype(np.float64, order="F") if order == "F" else values[:, ::1]
        for same in (laid_out, laid_out.tolist(), np.repeat(values, 2, axis=0)[::2]):
            assert push(shared, same).nlist == 7
            assert last_set(shared)[4] == digest(values)

    @pytest.mark.parametrize(
        "vectors", [[], [[]], [1.0, 2.0], np.zeros((2, 2, 2)), [[1.0], [1.0, 2.0]], [["one", "two"]], 7, None]
    )
    def test_what_is_no_table_is_refused_before_it_is_sent(self, shared: Path, push: Push, vectors: ArrayLike) -> None:
        before = events(shared)
        with pytest.raises(errors.BadCentroidsError, match="centroids") as caught:
            push(shared, vectors)
        assert "one" not in caught.value.message.split()
        assert events(shared) == before

    def test_value_beyond_float32_is_left_to_the_daemon(self, shared: Path, push: Push) -> None:
        push(shared, [[1e300, 0.0]])
        assert last_set(shared)[4] == digest(np.array([[np.inf, 0]], np.float32))

    def test_no_connection_is_left(self, shared: Path, push: Push) -> None:
        push(shared, matrix(5))
        before = live_descriptors()
        for _ in range(5):
            push(shared, matrix(500, 512))
            with pytest.raises(errors.BadCentroidsError):
                push(shared, matrix(500, 512), "fail:BAD_CENTROIDS")
        assert live_descriptors() == before


class TestRefusals:
    """A call fails with the daemon's own error, at any time of the push."""

    @pytest.mark.parametrize("when", ["", "late "])
    def test_refusal_is_the_class_that_it_was_raised_as(self, shared: Path, push: Push, when: str) -> None:
        with pytest.raises(errors.BadCentroidsError, match="fake: BAD_CENTROIDS") as caught:
            push(shared, matrix(3000, 512), f"{when}fail:BAD_CENTROIDS")  # more than fits ahead of the answer
        assert caught.value.metadata == {"index": "0", "limit": "7"}
        with pytest.raises(errors.CentroidStoreError):
            push(shared, matrix(3), f"{when}fail:CENTROIDS_NOT_STORED")

    def test_old_daemon_says_so(self, arrange: Arrange, push: Push) -> None:
        with pytest.raises(errors.UnimplementedError, match="no centroids"):
            push(arrange(old=True), matrix(3))

    def test_deadline_is_kept(self, arrange: Arrange, push: Push) -> None:
        home = arrange()
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
            push(home, matrix(3000, 512), "slow", timeout=0.3)
        assert time.monotonic() - began < 10
        wait_until(lambda: "slow began" in events(home))

    def test_closed_client_pushes_nothing(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            pass
        with pytest.raises(errors.RunedError, match="this client is closed"):
            client.set_centroids(matrix(3))


class TestAnotherTry:
    """The client waits for a temporary error to pass, and sends the whole set again."""

    def test_bootstrap_is_waited_out(self, arrange: Arrange, push: Push) -> None:
        assert push(arrange(loading=3), matrix(3)).nlist == 3

    def test_busy_daemon_is_asked_again(self, arrange: Arrange, push: Push) -> None:
        home = arrange(busy=2)
        assert push(home, matrix(2000, 512)).nlist == 2000
        assert events(home).count("busy") == 2
        assert last_set(home)[4] == digest(matrix(2000, 512))

    def test_daemon_that_dies_is_started_again(self, arrange: Arrange, push: Push) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            client.embed("hello")
            with pytest.raises(errors.DaemonUnavailableError):
                push(home, matrix(2000, 512), "die", spawn=False)
        assert push(home, matrix(2000, 512)).nlist == 2000
        assert len(pids(home)) == 2
        with pytest.raises(errors.DaemonUnavailableError):
            push(home, matrix(2000, 512), "die")  # kills the daemon that was started for the second try, too
        assert len(pids(home)) > 2

    def test_draining_daemon_makes_room_for_its_successor(self, arrange: Arrange, push: Push) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            client.embed("drain")
        assert push(home, matrix(3)).nlist == 3
        assert len(pids(home)) == 2


class TestRoutes:
    """`with_route` returns the cluster of each text."""

    def test_clusters_come_with_the_embeddings(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=2)) as client:
            with pytest.raises(errors.NoCentroidSetError):
                client.embed_items(["seven77"], with_route=True)
            client.set_centroids(matrix(9))
            first, failed, last = client.embed_items(["seven77", "fail:EMPTY_TEXT", "ok"], with_route=True)
            (plain,) = client.embed_items(["seven77"])
        assert isinstance(failed, errors.EmptyTextError)
        routes = [
            (item.cluster_id, item.centroid_set_version) for item in (first, last, plain) if isinstance(item, runed.Embedding)
        ]
        assert routes == [(7, "set 9"), (2, "set 9"), (None, "")]

    async def test_by_asyncio_too(self, arrange: Arrange) -> None:
        async with await runed.connect_async(home=arrange()) as client:
            await client.set_centroids(matrix(9))
            (item,) = await client.embed_items(["seven77"], with_route=True, role="query")
        assert isinstance(item, runed.Embedding)
        assert (item.cluster_id, item.centroid_set_version, item.prompt) == (7, "set 9", "Instruct: find it\nQuery:")
