"""`Rerank` of a real daemon with a real reranker beside its embedding model, over all protocols."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

import runed
from runed import errors
from tests.support import PROTOCOLS, RunningDaemon, Scores, call, wait_until

QUERY = "what is tea?"
DOCUMENTS = ["The train leaves at nine.", "Tea is a hot drink.", "tea", "Berlin"]


@pytest.fixture
def client(reranker_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=reranker_daemon.socket) as client:
        yield client


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_ranks(reranker_daemon: RunningDaemon, protocol: str) -> None:
    request = pb.RerankRequest(query=QUERY, documents=DOCUMENTS, top_n=3, return_documents=True)
    answer = call(protocol, reranker_daemon.socket, "Rerank", request)
    assert isinstance(answer.message, pb.RerankResponse), answer
    results = answer.message.results
    assert [result.document for result in results] == [DOCUMENTS[result.index] for result in results]
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert answer.message.model == "minilm-reranker"
    assert answer.message.fingerprint.startswith("fp1-")
    assert answer.message.token_count > sum(result.token_count for result in results) > 20


def test_scores_are_those_of_transformers(client: runed.Client, scores: Scores) -> None:
    for query, rows in scores.by_query().items():
        results = client.rerank(query, [row.document for row in rows], truncate="end")
        expected = 1 / (1 + np.exp([-rows[result.index].score for result in results]))
        assert np.abs(expected - [result.score for result in results]).max() <= 0.005
        assert [result.total_token_count for result in results] == [rows[result.index].total_tokens for result in results]


def test_a_batch_that_is_larger_than_a_request_is_ranked_as_a_whole(reranker_daemon: RunningDaemon) -> None:
    documents = [f"{'tea ' * (number % 40)}{number % 100} passage" for number in range(2500)]
    with runed.connect(socket_path=reranker_daemon.socket) as client:
        assert client.info().max_batch_size < len(documents)
        results = client.rerank(QUERY, documents, top_n=5)
        again = client.rerank(QUERY, documents)
    assert len(results) == 5
    assert len(again) == 2500
    assert sorted(result.index for result in again) == list(range(2500))
    assert [result.score for result in again] == sorted((result.score for result in again), reverse=True)
    assert [(result.index, result.score) for result in results] == [(result.index, result.score) for result in again[:5]]
    assert all(result.document == documents[result.index] for result in again)


def test_ties_keep_the_order_of_the_caller(client: runed.Client) -> None:
    results = client.rerank(QUERY, ["same", "other words", "same", "same"])
    assert [result.index for result in results if result.document == "same"] == [0, 2, 3]


async def test_the_asynchronous_client_ranks_the_same(reranker_daemon: RunningDaemon, client: runed.Client) -> None:
    expected = [result.index for result in client.rerank(QUERY, DOCUMENTS)]
    async with await runed.connect_async(socket_path=reranker_daemon.socket) as asynchronous:
        answers = await asyncio.gather(*(asynchronous.rerank(QUERY, DOCUMENTS) for _ in range(4)))
        assert [[result.index for result in answer] for answer in answers] == [expected] * 4
        assert await asynchronous.rerank(QUERY, []) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query": ""}, errors.EmptyTextError, "the query is empty"),
        ({"documents": ["a", " "]}, errors.EmptyTextError, r"document 1 \(counted from 0\)"),
        ({"documents": ["tea " * 600]}, errors.TextTooLongError, "together with the query"),
        ({"query": "tea " * 600, "truncate": "end"}, errors.TextTooLongError, "the query leaves no room"),
        ({"model": "no-such-model"}, errors.UnknownModelError, "no-such-model"),
        ({"model": "tiny-qwen3.f32"}, errors.WrongModelKindError, "rerank"),
        ({"top_n": 0}, errors.InvalidRequestError, "top_n is 0"),
        ({"lane": "fast"}, errors.InvalidRequestError, "lane is 'fast'"),
    ],
)
def test_bad_calls_are_explained(
    client: runed.Client, arguments: dict[str, Any], error: type[errors.RunedError], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.rerank(**({"query": QUERY, "documents": DOCUMENTS} | arguments))


def test_wrong_types_are_refused_before_anything_is_sent(client: runed.Client) -> None:
    with pytest.raises(TypeError, match="a batch is a list"):
        client.rerank(QUERY, "one document")
    with pytest.raises(TypeError, match="top_n is a str"):
        client.rerank(QUERY, DOCUMENTS, top_n="3")  # type: ignore[arg-type] # on purpose
    with pytest.raises(errors.InvalidTextError, match="query"):
        client.rerank("\ud800", DOCUMENTS)


def test_each_kind_of_model_refuses_the_other_work(reranker_daemon: RunningDaemon) -> None:
    request = pb.EmbedRequest(text="tea", model="minilm-reranker")
    refusal = call("connect+proto", reranker_daemon.socket, "Embed", request).refusal
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("invalid_argument", "WRONG_MODEL_KIND")
    refusal = call("connect+proto", reranker_daemon.socket, "Embed", pb.EmbedRequest(text="tea")).refusal
    assert refusal is None


def test_a_broken_document_is_named(reranker_daemon: RunningDaemon) -> None:
    with reranker_daemon.http() as http:
        body = b'{"query": "a", "documents": ["b", "\\ud800"]}'
        headers = {"content-type": "application/json"}
        answer = http.post("/runed.v1.RunedService/Rerank", content=body, headers=headers).json()
    assert "document 1 (counted from 0) is not valid Unicode" in answer["message"]


def test_both_engines_work_side_by_side(reranker_daemon: RunningDaemon, client: runed.Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        ranked = [threads.submit(client.rerank, f"query {number}", DOCUMENTS) for number in range(20)]
        embedded = [threads.submit(client.embed, f"text {number}") for number in range(40)]
        assert all(len(future.result()) == len(DOCUMENTS) for future in ranked)
        assert all(future.result().shape == (64,) for future in embedded)


def test_a_crash_of_the_reranker_costs_a_call_some_time(reranker_daemon: RunningDaemon, client: runed.Client) -> None:
    def pids() -> tuple[int, int]:
        answers = [reranker_daemon.call("Health", {"model": model}) for model in ("minilm-reranker", "")]
        return int(answers[0].get("enginePid", 0)), int(answers[1].get("enginePid", 0))

    client.rerank(QUERY, DOCUMENTS)
    client.embed("warm")
    before = pids()
    with ThreadPoolExecutor() as threads:
        call = threads.submit(client.rerank, "a new query", [f"passage {number} " * 60 for number in range(30)])
        wait_until(lambda: reranker_daemon.health().get("inFlightRequests"))
        os.kill(before[0], signal.SIGKILL)
        assert len(call.result()) == 30
    after = pids()
    assert after[0] not in {0, before[0]}
    assert after[1] == before[1]


def test_a_cancelled_call_leaves_the_queue(reranker_daemon: RunningDaemon, client: runed.Client) -> None:
    documents = [f"passage {number} of a call that is cancelled " * 10 for number in range(400)]
    with pytest.raises(errors.DeadlineExceededError):
        client.rerank(QUERY, documents, timeout=0.3)
    wait_until(lambda: not reranker_daemon.health().get("inFlightRequests"), timeout=10)
    assert reranker_daemon.health()["bulk"].get("queuedTexts", 0) == 0
