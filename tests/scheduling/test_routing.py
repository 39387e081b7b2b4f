"""Embeddings with their nearest centroids, by the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from runed.domain.requests import Centroid, CentroidHeader, Embedding, EmbedOptions
from runed.errors import EmptyTextError, NoCentroidSetError, RunedError
from runed.routing.centroids import CentroidSet, Matrix
from runed.routing.router import Router
from runed.scheduling.scheduler import Scheduler
from tests.scheduling.conftest import MakeEngine

DIM = 64
ME = "unix:1"
ROUTED = EmbedOptions(with_route=True)
TEXTS = [f"cup number {number} of green tea" for number in range(12)]


def matrix(count: int, *, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype("<f4")


async def install(engine: Scheduler, centroids: Matrix, version: str = "") -> str:
    async def batches() -> AsyncIterator[Iterable[Centroid]]:
        yield [Centroid(number, row.tobytes()) for number, row in enumerate(centroids)]

    header = CentroidHeader(version=version, dim=DIM, nlist=len(centroids), preset="")
    return await engine.centroids.install(header, batches())


def embeddings(items: Sequence[Embedding | RunedError]) -> list[Embedding]:
    assert all(isinstance(item, Embedding) for item in items), items
    return [item for item in items if isinstance(item, Embedding)]


def vectors(items: Sequence[Embedding | RunedError]) -> NDArray[np.float64]:
    return np.array([np.frombuffer(item.vector, "<f4") for item in embeddings(items)], np.float64)


def ids(items: Sequence[Embedding | RunedError]) -> list[int]:
    return [item.cluster_id for item in embeddings(items)]


def nearest(native: NDArray[np.float64], centroids: Matrix) -> list[int]:
    return [int(number) for number in (native @ centroids.astype(np.float64).T).argmax(axis=1)]


async def test_each_text_gets_its_nearest_centroid(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    native = vectors((await engine.embed(TEXTS, EmbedOptions(), client=ME)).items)
    centroids = (native - native.mean(axis=0)).astype("<f4")  # each text has one of its own
    version = await install(engine, centroids)
    answer = await engine.embed(TEXTS, ROUTED, client=ME)
    assert answer.centroid_set_version == version
    assert ids(answer.items) == nearest(native, centroids)
    assert len(set(ids(answer.items))) > 6
    [single] = (await engine.embed(TEXTS[3:4], ROUTED, client=ME)).items
    assert ids([single]) == ids(answer.items)[3:4]


async def test_route_is_that_of_the_whole_vector_however_it_is_cut(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    centroids = matrix(500)
    await install(engine, centroids)
    whole = await engine.embed(TEXTS, ROUTED, client=ME)
    fresh, _ = make_engine()
    await install(fresh, centroids)
    for some in (engine, fresh):  # from the cache, and computed
        cut = await some.embed(TEXTS, EmbedOptions(with_route=True, dimensions=32), client=ME)
        plain = await some.embed(TEXTS, EmbedOptions(dimensions=32), client=ME)
        assert ids(cut.items) == ids(whole.items)
        assert np.array_equal(vectors(cut.items), vectors(plain.items))
        assert cut.space == plain.space
        assert vectors(cut.items).shape == (12, 32)
        assert ids(cut.items) != nearest(np.pad(vectors(cut.items), ((0, 0), (0, 32))), centroids)
    assert len(backend.computed) == 12


async def test_without_a_set_nothing_is_computed(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    for per_item_errors in (False, True):
        with pytest.raises(NoCentroidSetError):
            await engine.embed(TEXTS, ROUTED, client=ME, per_item_errors=per_item_errors)
    assert not backend.computed
    assert backend.state.pid == 0
    plain = await engine.embed(TEXTS[:1], EmbedOptions(), client=ME)
    assert plain.centroid_set_version == ""


async def test_known_vectors_are_routed_without_the_engine(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    await engine.embed(TEXTS, EmbedOptions(), client=ME)
    await backend.stop()
    await install(engine, matrix(50))
    answer = await engine.embed(TEXTS, ROUTED, client=ME)
    assert all(item.cached for item in embeddings(answer.items))
    assert ids(answer.items) == nearest(vectors(answer.items), matrix(50))
    assert backend.state.pid == 0


async def test_errors_stay_in_their_places(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    centroids = matrix(500)
    await install(engine, centroids)
    answer = await engine.embed([TEXTS[0], "", TEXTS[1]], ROUTED, client=ME, per_item_errors=True)
    assert isinstance(answer.items[1], EmptyTextError)
    sound = [answer.items[0], answer.items[2]]
    assert ids(sound) == nearest(vectors(sound), centroids)
    with pytest.raises(EmptyTextError):
        await engine.embed([TEXTS[0], "", TEXTS[1]], ROUTED, client=ME)


async def test_call_in_flight_uses_one_set_for_all_of_its_texts(make_engine: MakeEngine) -> None:
    engine, backend = make_engine()
    first, second = matrix(300, seed=1), matrix(300, seed=2)
    await install(engine, first, version="first")
    call = asyncio.create_task(engine.embed(TEXTS, ROUTED, client=ME))
    async with asyncio.timeout(20):
        while not backend.batches:  # noqa: ASYNC110 # the engine has no events for what only a test wants to know
            await asyncio.sleep(0)
    await install(engine, second, version="second")
    for answer, version, centroids in (
        (await call, "first", first),
        (await engine.embed(TEXTS, ROUTED, client=ME), "second", second),
    ):
        assert answer.centroid_set_version == version
        assert ids(answer.items) == nearest(vectors(answer.items), centroids)


async def test_event_loop_goes_on_while_routes_are_found() -> None:
    centroids = CentroidSet(matrix(40_000), version="large", max_norm=20.0)
    items = [Embedding(vector=row.tobytes(), tokens=1, total_tokens=1) for row in matrix(60)]
    assert centroids.portion < len(items)
    router = Router()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    routed = await router.route(items, centroids)
    beside.cancel()
    router.close()
    assert ids(routed) == nearest(vectors(items), matrix(40_000))
    assert turns > 100
