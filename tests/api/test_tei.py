"""The API of Text Embeddings Inference on the daemon's socket: its shapes and its errors, before a fake host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from runed.domain.requests import EmbedOptions, Role, Truncate
from runed.domain.status import LoadingPhase, Status
from tests.api.conftest import Served
from tests.fakes.fake_host import vector_of


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(served.path))
    async with httpx.AsyncClient(transport=transport, base_url="http://runed", timeout=10) as client:
        yield client


def numbers(text: str) -> list[float]:
    return [float(str(value)) for value in np.frombuffer(vector_of(text), "<f4")]  # NumPy's str has the shortest decimal


@pytest.mark.parametrize("path", ["/embed", "/"])
async def test_texts_are_embedded_in_order(path: str, http: httpx.AsyncClient, served: Served) -> None:
    assert (await http.post(path, json={"inputs": "a b"})).json() == [numbers("a b")]
    assert (await http.post(path, json={"inputs": ["a", "b"], "normalize": True})).json() == [numbers("a"), numbers("b")]
    options = {"truncate": True, "prompt_name": "query", "dimensions": 4}
    for side in ("Left", "right"):
        assert (await http.post(path, json={"inputs": "x", "truncation_direction": side} | options)).status_code == 200
    assert [asked.options for asked in served.host.asked] == [
        EmbedOptions(),
        EmbedOptions(),
        EmbedOptions(truncate=Truncate.START, role=Role.QUERY, dimensions=4),
        EmbedOptions(truncate=Truncate.END, role=Role.QUERY, dimensions=4),
    ]


async def test_tokens_are_told(http: httpx.AsyncClient) -> None:
    [tokens, other] = (await http.post("/tokenize", json={"inputs": ["one two", "two"]})).json()
    assert [token["text"] for token in tokens] == ["<s>", "one", "two", "</s>"]
    assert [token["special"] for token in tokens] == [True, False, False, True]
    assert tokens[2]["id"] == other[1]["id"] != tokens[1]["id"]
    assert set(tokens[0]) == {"id", "text", "special", "start", "stop"}
    [plain] = (await http.post("/tokenize", json={"inputs": "one two", "add_special_tokens": False})).json()
    assert [token["text"] for token in plain] == ["one", "two"]
    large = await http.post("/tokenize", json={"inputs": "x" * (1024 * 1024)})
    assert (large.status_code, large.json()["error_type"]) == (413, "Validation")


async def test_the_model_is_described(http: httpx.AsyncClient) -> None:
    info = (await http.get("/info")).json()
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("fake.f32", "f32", 12)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_client_batch_size"], info["version"]) == (2048, "1.2.3")


@pytest.mark.parametrize("path", ["/health", "/"])
async def test_health_is_that_of_an_embedding_that_comes_now(path: str, http: httpx.AsyncClient, served: Served) -> None:
    for status, phase, code in (
        (Status.OK, None, 200),
        (Status.IDLE, None, 200),
        (Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, 200),
        (Status.LOADING, LoadingPhase.FETCHING_MODEL, 503),
        (Status.DEGRADED, None, 503),
        (Status.SHUTTING_DOWN, None, 503),
    ):
        served.host.status, served.host.phase = status, phase
        response = await http.get(path)
        assert response.status_code == code
        if code == 503:
            assert response.json()["error_type"] == "Unhealthy"


BAD: dict[str, tuple[dict[str, Any] | bytes, int, str, str]] = {
    "no JSON": (b"{", 422, "Validation", "not valid JSON"),
    "nothing": ({}, 413, "Validation", "inputs is missing"),
    "tokens": ({"inputs": [[1, 2]]}, 413, "Validation", "tokens, as numbers"),
    "no batch": ({"inputs": []}, 400, "Empty", "no text"),
    "blank": ({"inputs": " "}, 413, "Validation", "empty"),
    "surrogate": (b'{"inputs": "\\ud800"}', 422, "Tokenizer", "half of a surrogate pair"),
    "long": ({"inputs": "w " * 20}, 413, "Validation", "too long"),
    "raw vectors": ({"inputs": "x", "normalize": False}, 413, "Validation", "have length 1"),
    "prompt": ({"inputs": "x", "prompt_name": "passage"}, 413, "Validation", '"query" or "document"'),
    "side": ({"inputs": "x", "truncation_direction": "up"}, 413, "Validation", '"Right" or "Left"'),
    "queue": ({"inputs": "fail:QUEUE_FULL"}, 429, "Overloaded", "arranged"),
    "engine": ({"inputs": "fail:BACKEND_FAULT"}, 424, "Backend", "arranged"),
    "no engine": ({"inputs": "fail:BACKEND_UNAVAILABLE"}, 503, "Unhealthy", "arranged"),
    "bug": ({"inputs": "fail:INTERNAL"}, 500, "Backend", "arranged"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_refused_in_teis_shape(case: str, http: httpx.AsyncClient) -> None:
    body, status, kind, words = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await http.post("/embed", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert set(response.json()) == {"error", "error_type"}
    assert words in response.json()["error"]


async def test_another_type_or_method_is_refused(http: httpx.AsyncClient) -> None:
    form = await http.post("/embed", content=b'{"inputs": "x"}', headers={"content-type": "text/plain"})
    assert (form.status_code, form.json()["error_type"]) == (415, "Validation")
    assert (await http.get("/embed")).status_code == 405
