"""The rerank APIs that programs already use: those of Jina, Cohere, llama-server and TEI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import RunningDaemon, Scores

QUERY = "what is tea?"
DOCUMENTS = ["The train leaves at nine.", "Tea is a hot drink.", "tea", "Berlin"]
PATHS = ["/v1/rerank", "/v1/reranking", "/v2/rerank", "/rerank"]


@pytest.fixture
def http(reranker_daemon: RunningDaemon) -> Iterator[httpx.Client]:
    with reranker_daemon.http() as http:
        yield http


def post(http: httpx.Client, path: str, **body: object) -> Any:  # noqa: ANN401 # JSON
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", PATHS)
def test_every_path_ranks_in_the_form_of_jina(http: httpx.Client, path: str) -> None:
    answer = post(http, path, model="minilm-reranker", query=QUERY, documents=DOCUMENTS)
    assert answer.keys() == {"object", "model", "results", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "minilm-reranker")
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]
    assert all(result.keys() == {"index", "relevance_score"} for result in answer["results"])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 30


def test_documents_may_be_objects_and_come_back(http: httpx.Client) -> None:
    objects = [{"text": text, "title": "ignored"} for text in DOCUMENTS]
    answer = post(http, "/v1/rerank", query=QUERY, documents=objects, top_n=2, return_documents=True)
    assert len(answer["results"]) == 2
    for result in answer["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    plain = post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [result["index"] for result in plain["results"]] == [result["index"] for result in answer["results"]]


def test_a_member_of_a_document_that_is_not_read_may_have_any_name(http: httpx.Client) -> None:
    body = json.dumps({"query": QUERY, "documents": [{"text": text, "\ud800": 1} for text in DOCUMENTS]})
    answer = http.post("/v1/rerank", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, len(answer.json()["results"])) == (200, len(DOCUMENTS))


def test_fields_of_other_servers_are_ignored(http: httpx.Client) -> None:
    post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS, max_chunks_per_doc=10, rank_fields=["text"], priority=0)


def test_tei_gets_its_own_form(http: httpx.Client, scores: Scores) -> None:
    rows = [row for row in scores.pairs if row.query == scores.pairs[0].query and row.total_tokens < 512]
    texts = [row.document for row in rows]
    answer = post(http, "/rerank", query=rows[0].query, texts=texts, raw_scores=True, return_text=True)
    assert [item["index"] for item in answer] == sorted(range(len(rows)), key=lambda index: -rows[index].score)
    assert [item["text"] for item in answer] == [texts[item["index"]] for item in answer]
    raw = [rows[item["index"]].score for item in answer]
    assert np.abs(np.array(raw) - [item["score"] for item in answer]).max() <= 0.03
    plain = post(http, "/rerank", query=rows[0].query, texts=texts)
    assert all(item.keys() == {"index", "score"} for item in plain)
    expected = 1 / (1 + np.exp(-np.array(raw)))
    assert np.abs(expected - [item["score"] for item in plain]).max() <= 0.005


@pytest.mark.parametrize("direction", ["Right", "Left"])
def test_tei_cuts_on_demand(http: httpx.Client, direction: str) -> None:
    long = {"query": "tea", "texts": ["word " * 600]}
    assert http.post("/rerank", json=long).status_code == 413
    [item] = post(http, "/rerank", **long, truncate=True, truncation_direction=direction)
    assert 0 < item["score"] < 1


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({}, 400, "INVALID_REQUEST", "query is missing"),
        ({"query": 1, "documents": ["a"]}, 400, "INVALID_REQUEST", "query is no string"),
        ({"query": "a"}, 400, "INVALID_REQUEST", "documents is missing"),
        ({"query": "a", "documents": "b"}, 400, "INVALID_REQUEST", "documents is a string"),
        ({"query": "a", "documents": [{"title": "b"}]}, 400, "INVALID_REQUEST", "documents has a value"),
        ({"query": "a", "documents": [1, 2]}, 400, "INVALID_REQUEST", "documents holds tokens"),
        ({"query": "a", "documents": []}, 400, "EMPTY_BATCH", "no text"),
        ({"query": "a", "documents": ["b", ""]}, 400, "EMPTY_TEXT", "document 1"),
        ({"query": "", "documents": ["b"]}, 400, "EMPTY_TEXT", "the query is empty"),
        ({"query": "a", "documents": ["b " * 600]}, 400, "TEXT_TOO_LONG", "document 0"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, 400, "INVALID_REQUEST", "top_n has a value"),
        ({"query": "a", "documents": ["b"], "truncate": "middle"}, 400, "INVALID_REQUEST", "truncate has a value"),
        ({"query": "a", "documents": ["b"], "model": "rerank-v3.5"}, 404, "UNKNOWN_MODEL", "there is no model"),
        ({"query": "a", "documents": ["b"], "model": "tiny-qwen3.f32"}, 400, "WRONG_MODEL_KIND", "rerank"),
    ],
)
def test_bad_requests_are_explained(http: httpx.Client, body: dict[str, object], status: int, code: str, message: str) -> None:
    answer = http.post("/v1/rerank", json=body)
    assert answer.status_code == status
    told = answer.json()
    assert told["error"]["code"] == code
    assert message in told["message"]
    assert told["message"] == told["error"]["message"] == told["detail"]


def test_another_method_is_refused(http: httpx.Client) -> None:
    answer = http.get("/v1/rerank")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_call_is_logged_without_its_texts(reranker_daemon: RunningDaemon, http: httpx.Client) -> None:
    post(http, "/v1/rerank", query="a secret query", documents=["a secret document"])
    log = reranker_daemon.log()
    assert "Rerank API" in log
    assert "secret" not in log
