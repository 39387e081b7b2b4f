"""Documents are ranked as texts are embedded: no pair twice, in lanes, with exact limits, cut on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from runed.backends.base import pair
from runed.backends.llama.reranker import LlamaReranker
from runed.caching.cache import VectorCache
from runed.domain.ranking import RerankAnswer, RerankOptions, relevance
from runed.domain.requests import Lane, Truncate
from runed.errors import (
    BatchTooLargeError,
    EmptyBatchError,
    EmptyTextError,
    InvalidRequestError,
    InvalidTextError,
    QueueFullError,
    TextTooLongError,
)
from runed.metrics import Metrics
from runed.paths import Paths
from runed.routing.store import CentroidStore
from runed.scheduling.batcher import Batcher
from runed.scheduling.queue import QueueLimits
from runed.scheduling.reranking import RerankScheduler
from tests.scheduling.conftest import Recorder
from tests.support import Scores, eventually

PLAIN = RerankOptions()
ME = "unix:1"
QUERY = "what is tea?"


class PairRecorder(Recorder):
    """A `Recorder` of a reranker."""

    def __init__(self, backend: LlamaReranker) -> None:
        super().__init__(backend)
        self._pairs = backend

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return await self._pairs.detokenize(tokens)


@dataclass
class Bench:
    """A scheduler of a reranker, and what its backend computed."""

    scheduler: RerankScheduler
    backend: PairRecorder

    async def rank(
        self, documents: Sequence[str], options: RerankOptions = PLAIN, *, query: str = QUERY, client: str = ME
    ) -> RerankAnswer:
        return await self.scheduler.rerank(query, documents, options, client=client)


@pytest.fixture
async def bench(home: Path, llama_server: Path, reranker: Path) -> AsyncIterator[Bench]:
    paths = Paths(home)
    backend = PairRecorder(
        LlamaReranker(executable=llama_server, model=reranker, model_sha256="ab" * 32, paths=paths, ctx_size=2048)
    )
    metrics = Metrics()
    scheduler = RerankScheduler(
        backend,
        batcher=Batcher(limits=QueueLimits(64, 100_000), metrics=metrics),
        idle_timeout=0,
        cache=VectorCache(1_000_000),
        metrics=metrics,
        centroids=CentroidStore(paths.centroids, dim=1, model=backend.model.identity),
        engine_version="engine 1",
    )
    yield Bench(scheduler, backend)
    await scheduler.close()


async def test_documents_are_ranked_as_transformers_ranks_them(bench: Bench, scores: Scores) -> None:
    for query, rows in scores.by_query().items():
        answer = await bench.rank([row.document for row in rows], RerankOptions(truncate=Truncate.END), query=query)
        assert [result.index for result in answer.results] == sorted(range(len(rows)), key=lambda index: -rows[index].score)
        for result in answer.results:
            row = rows[result.index]
            assert result.raw_score == pytest.approx(row.score, abs=0.02)
            assert result.score == pytest.approx(relevance(row.score), abs=0.005)
            assert (result.total_tokens, result.truncated) == (row.total_tokens, row.tokens < row.total_tokens)
        assert answer.tokens == sum(result.tokens for result in answer.results)


async def test_top_n_keeps_the_best(bench: Bench) -> None:
    documents = ["the train", "a hot drink", "tea", "Berlin"]
    whole = await bench.rank(documents)
    assert len(whole.results) == 4
    for top_n in (1, 3, 4, 1000):
        best = await bench.rank(documents, RerankOptions(top_n=top_n))
        assert [result.index for result in best.results] == [result.index for result in whole.results][:top_n]
        assert best.tokens == whole.tokens


async def test_equal_documents_keep_their_order_and_are_scored_once(bench: Bench) -> None:
    answer = await bench.rank(["the train", "tea", "the train", "tea", "the train"])
    order = [result.index for result in answer.results]
    assert order in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])
    assert sorted(map(str, bench.backend.computed)) == sorted([pair(QUERY, "tea"), pair(QUERY, "the train")])


async def test_a_score_that_was_computed_comes_from_the_cache(bench: Bench) -> None:
    first = await bench.rank(["tea", "a train"])
    again = await bench.rank(["a train", "tea"], client="unix:2")
    other = await bench.rank(["tea"], query="which train?")
    assert [result.cached for result in (*first.results, *again.results, *other.results)] == [False, False, True, True, False]
    assert {result.raw_score for result in first.results} == {result.raw_score for result in again.results}
    assert len(bench.backend.computed) == 3
    assert first.fingerprint == other.fingerprint != ""


async def test_query_and_document_are_not_interchangeable_in_the_cache(bench: Bench) -> None:
    one = await bench.rank(["b c"], query="a")
    other = await bench.rank(["c"], query="a b")
    assert not other.results[0].cached
    assert one.results[0].raw_score != other.results[0].raw_score


async def test_a_document_that_is_too_long_is_refused_or_cut(bench: Bench) -> None:
    long = "word " * 300 + "tea " * 300
    with pytest.raises(TextTooLongError, match=r"^document 1 \(counted from 0\) has 607 tokens together") as caught:
        await bench.rank(["tea", long])
    assert caught.value.metadata == {"tokens": "607", "limit": "512", "index": "1"}
    assert not bench.backend.computed
    end = (await bench.rank([long], RerankOptions(truncate=Truncate.END))).results[0]
    start = (await bench.rank([long], RerankOptions(truncate=Truncate.START))).results[0]
    assert (end.tokens, end.total_tokens, end.truncated) == (512, 607, True)
    by_hand = await bench.rank(["word " * 300 + "tea " * 205, "word " * 205 + "tea " * 300])
    assert sorted(result.raw_score for result in by_hand.results) == pytest.approx(
        sorted([end.raw_score, start.raw_score]), abs=1e-4
    )


async def test_a_cut_inside_of_a_word_keeps_the_limit(bench: Bench) -> None:
    long = "unaffable antidisestablishmentarianism " * 100
    for query in ("a", "a b", "a b c", "a b c d", "a b c d e", "a b c d e f"):
        for truncate in (Truncate.END, Truncate.START):
            [result] = (await bench.rank([long], RerankOptions(truncate=truncate), query=query)).results
            assert 500 <= result.tokens <= 512


async def test_a_query_without_room_for_a_document_is_refused(bench: Bench) -> None:
    query = "tea " * 520
    with pytest.raises(TextTooLongError, match="together with the query"):
        await bench.rank(["a"], query=query)
    with pytest.raises(TextTooLongError, match="the query leaves no room"):
        await bench.rank(["a"], RerankOptions(truncate=Truncate.END), query=query)


@pytest.mark.parametrize(
    ("query", "documents", "error", "message"),
    [
        ("", ["a"], EmptyTextError, "the query is empty"),
        (" \n", ["a"], EmptyTextError, "the query is empty"),
        ("a\0b", ["a"], InvalidTextError, "the query has a NUL"),
        ("\ud800", ["a"], InvalidTextError, "the query is not valid Unicode"),
        ("a", [], EmptyBatchError, "no text"),
        ("a", ["b", ""], EmptyTextError, r"document 1 \(counted from 0\) is empty.*its score would mean nothing"),
        ("a", ["b", "\u200b"], EmptyTextError, r"document 1 \(counted from 0\) has only"),
        ("a", ["b\0c"], InvalidTextError, r"document 0 \(counted from 0\) has a NUL"),
        ("a", ["b"] * 2049, BatchTooLargeError, "2049"),
        ("a", [f"b{number}" for number in range(65)], BatchTooLargeError, "can never wait at once"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_computed(
    bench: Bench, query: str, documents: list[str], error: type[InvalidRequestError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await bench.rank(documents, query=query)
    assert not bench.backend.computed


async def test_a_few_documents_go_before_many(bench: Bench) -> None:
    await bench.rank(["warm"])
    many = [f"{number} " * 100 for number in range(40)]
    bulk = asyncio.create_task(bench.rank(many))
    await eventually(lambda: bench.scheduler.load.queued[Lane.BULK][0] > 30)
    few = await bench.rank([f"{number} tea" for number in range(8)], client="unix:2")
    assert not bulk.done()
    assert len(few.results) == 8
    assert len((await bulk).results) == 40
    lane = RerankOptions(lane=Lane.BULK)
    before = bench.scheduler.load.stats
    await bench.rank(["now in bulk"], lane)
    after = bench.scheduler.load.stats
    assert after != before


async def test_a_full_queue_is_told(bench: Bench) -> None:
    await bench.rank(["warm"])
    calls = [asyncio.create_task(bench.rank([f"{call} {number} " * 50 for number in range(30)])) for call in range(4)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(outcome, QueueFullError) for outcome in outcomes)
    assert any(isinstance(outcome, RerankAnswer) for outcome in outcomes)


async def test_pairs_of_a_caller_that_left_are_not_computed(bench: Bench) -> None:
    await bench.rank(["warm"])
    call = asyncio.create_task(bench.rank([f"{number} " * 100 for number in range(40)]))
    await eventually(lambda: len(bench.backend.computed) > 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert bench.scheduler.load.queued[Lane.BULK] == (0, 0)
    assert len(bench.backend.computed) < 20
    assert (await bench.rank(["after it"])).results


def test_relevance_is_the_logistic_function() -> None:
    assert relevance(0) == 0.5
    assert relevance(2) == pytest.approx(0.880797, abs=1e-6)
    assert relevance(-2) == pytest.approx(1 - relevance(2), abs=1e-12)
    assert relevance(1e30) == 1
    assert 0 <= relevance(-1e30) < 1e-300
