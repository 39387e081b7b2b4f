"""Ollama's API on the daemon's socket: its shapes, its names and its errors, before a fake host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from runed.api.ollama.names import tagged
from runed.domain.model_status import ModelStatus
from runed.domain.requests import Truncate
from runed.domain.status import Status
from runed.errors import ModelBusyError
from tests.api.conftest import Served
from tests.fakes.fake_host import DIM, vector_of


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(served.path))
    async with httpx.AsyncClient(transport=transport, base_url="http://runed", timeout=10) as client:
        yield client


def numbers(text: str) -> list[float]:
    return [float(str(value)) for value in np.frombuffer(vector_of(text), "<f4")]  # NumPy's str has the shortest decimal


async def test_texts_are_embedded_in_order_and_cut_as_ollama_does(http: httpx.AsyncClient, served: Served) -> None:
    answer = (await http.post("/api/embed", json={"model": "fake", "input": ["a b", "c" + " d" * 30]})).json()
    assert answer["model"] == "fake:latest"
    assert answer["embeddings"] == [numbers("a b"), numbers("c" + " d" * 30)]
    assert answer["prompt_eval_count"] == 4 + 12
    assert answer["total_duration"] > 0
    one = {"model": "other", "input": "a b", "truncate": False, "dimensions": 4, "options": {"num_ctx": 7}, "keep_alive": "5m"}
    answer = (await http.post("/api/embed", json=one)).json()
    assert (answer["model"], [len(vector) for vector in answer["embeddings"]]) == ("other:latest", [4])
    options = [asked.options for asked in served.host.asked]
    assert [(each.model, each.truncate, each.dimensions) for each in options] == [
        ("fake", Truncate.END, 0),
        ("other", Truncate.NONE, 4),
    ]


async def test_older_programs_get_one_vector(http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/embeddings", json={"model": "fake", "prompt": "a b"})).json() == {"embedding": numbers("a b")}
    assert (await http.post("/api/embeddings", json={"name": "other"})).json() == {"embedding": []}


async def test_a_body_may_tell_any_type(http: httpx.AsyncClient) -> None:
    for kind in ("", "application/x-www-form-urlencoded", "text/plain"):
        response = await http.post("/api/embed", content=b'{"input": "x"}', headers={"content-type": kind})
        assert response.json()["embeddings"] == [numbers("x")]


async def test_names_may_have_tags(http: httpx.AsyncClient, served: Served) -> None:
    names = {
        "fake:latest": "fake",
        "fake:f32": "fake.f32",
        "FAKE:q8_0": "FAKE.q8_0",
        "other:LATEST": "other",
        "text-embedding:3-small": "text-embedding-3-small",
    }
    for name in names:
        assert (await http.post("/api/embed", json={"model": name, "input": "x"})).status_code == 200
    assert [asked.options.model for asked in served.host.asked] == list(names.values())


@pytest.mark.parametrize("name", ["nothing", "fake:f16", "other:7b-q8_0", "x/fake", "..:..", ":"])
@pytest.mark.parametrize("path", ["embed", "embeddings", "show"])
async def test_an_unknown_model_is_not_found(path: str, name: str, http: httpx.AsyncClient) -> None:
    response = await http.post(f"/api/{path}", json={"model": name, "input": "x", "prompt": "x"})
    assert response.status_code == 404
    assert set(response.json()) == {"error"}
    assert "fake.f32, fake.q8_0, other" in response.json()["error"]


async def test_models_are_listed_as_tags(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/api/tags")).json()["models"]
    assert [(model["name"], model["model"]) for model in listed] == [
        ("fake:latest", "fake:latest"),
        ("fake:q8_0", "fake:q8_0"),
        ("other:latest", "other:latest"),
    ]
    assert listed[1]["details"]["quantization_level"] == "Q8_0"
    for model in listed:  # what is listed can be used
        assert (await http.post("/api/show", json={"model": model["model"]})).status_code == 200


async def test_a_variant_that_is_not_the_default_one_is_its_own_tag() -> None:
    variants = ("qwen3-embedding-0.6b.q6_K", "qwen3-embedding-0.6b.f16")
    models = [ModelStatus(name=name, family="qwen3-embedding-0.6b", variants=variants) for name in variants]
    assert [tagged(model) for model in models] == ["qwen3-embedding-0.6b:latest", "qwen3-embedding-0.6b:f16"]


async def test_a_model_is_described(http: httpx.AsyncClient) -> None:
    shown = (await http.post("/api/show", json={"model": "other"})).json()
    assert shown["capabilities"] == ["embedding"]
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.embedding_length"] == DIM
    assert shown["model_info"][f"{architecture}.context_length"] == 12
    assert shown["details"]["format"] == "gguf"


async def test_running_models_and_the_version_are_told(http: httpx.AsyncClient) -> None:
    running = (await http.get("/api/ps")).json()["models"]
    assert [model["name"] for model in running] == ["fake:latest", "fake:q8_0", "other:latest"]
    assert (await http.get("/api/version")).json() == {"version": "1.2.3"}


async def test_the_end_of_the_longest_keep_alive_is_told(
    http: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await served.host.models()

    async def models() -> list[ModelStatus]:
        return [replace(known[0], last_used_at=1_800_000_000, keep_alive_seconds=seconds) for seconds in (600.0, 1e13)]

    monkeypatch.setattr(served.host, "models", models)
    running = (await http.get("/api/ps")).json()["models"]
    assert [model["expires_at"][:10] for model in running] == ["2027-01-15", "9999-12-31"]


async def test_a_model_without_a_text_is_loaded_or_unloaded(
    http: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []

    async def warm_up(model: str = "") -> None:
        done.append(("load", model))

    async def unload(model: str = "") -> None:
        done.append(("unload", model))
        if model == "fake":
            raise ModelBusyError("it works")

    monkeypatch.setattr(served.host, "warm_up", warm_up)
    monkeypatch.setattr(served.host, "unload", unload)
    for keep_alive in (None, "5m", -1, "0.5s"):
        answer = await http.post("/api/embed", json={"model": "other", "input": "", "keep_alive": keep_alive})
        assert answer.json() == {"model": "other:latest", "embeddings": []}
    for zero in (0, "0", "0s", 0.0):
        answer = await http.post("/api/embed", json={"model": "other:latest", "keep_alive": zero})
        assert answer.json() == {"model": "other:latest", "embeddings": []}
    assert done == [("load", "other")] * 4 + [("unload", "other")] * 4
    busy = await http.post("/api/embed", json={"model": "fake", "keep_alive": 0})
    assert (busy.status_code, busy.json()) == (409, {"error": "it works"})


async def test_a_pull_tells_its_progress(http: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    describe, health = served.host.model, served.host.health

    async def model(name: str = "") -> ModelStatus:
        nonlocal looks
        looks += 1
        status = await describe(name)
        if looks > 2:
            return status
        return ModelStatus(name=status.name, family=status.family)

    monkeypatch.setattr(served.host, "model", model)
    response = await http.post("/api/pull", json={"model": "other"})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[1:3] == [{"status": ""}] * 2, "there are no bytes to draw a bar of"
    assert lines[-2]["status"] == "pulling other"
    assert lines[-1] == {"status": "success"}
    assert (await http.post("/api/pull", json={"model": "other", "stream": False})).json() == {"status": "success"}

    looks = -1000
    served.host.status = Status.DEGRADED
    failed = await http.post("/api/pull", json={"model": "other"})
    assert set(json.loads(failed.text.splitlines()[-1])) == {"error"}
    assert health().status is Status.DEGRADED
    refused = await http.post("/api/pull", json={"model": "other", "stream": False})
    assert refused.status_code == 503
    unknown = await http.post("/api/pull", json={"model": "nothing"})
    assert "there is no model" in json.loads(unknown.text.splitlines()[-1])["error"]


BAD: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "no JSON": (b"{", 400, "not valid JSON"),
    "list": (b"[]", 400, "no JSON object"),
    "model": ({"model": 7, "input": "x"}, 400, "model has a value"),
    "input": ({"input": 7}, 400, "input is neither"),
    "tokens": ({"input": [1, 2]}, 400, "tokens, as numbers"),
    "truncate": ({"input": "x", "truncate": "yes"}, 400, "true or false"),
    "dimensions": ({"input": "x", "dimensions": -1}, 400, "a whole number"),
    "too many dimensions": ({"input": "x", "dimensions": 2**32}, 400, "from 1 to 4294967295, or 0 for all"),
    "keep_alive": ({"input": "x", "keep_alive": "soon"}, 400, "a number of seconds, or a duration"),
    "keep_alive without end": ({"input": "", "keep_alive": "99999999999h"}, 400, "a number of seconds, or a duration"),
    "keep_alive as a list": ({"input": "x", "keep_alive": []}, 400, "a number of seconds, or a duration"),
    "keep_alive as a boolean": ({"input": "", "keep_alive": False}, 400, "a number of seconds, or a duration"),
    "surrogate": (b'{"model": "\\ud800", "input": "x"}', 400, "half of a surrogate pair"),
    "blank": ({"input": " "}, 400, "empty"),
    "long": ({"input": "w " * 20, "truncate": False}, 400, "too long"),
    "busy": ({"input": "fail:QUEUE_FULL"}, 429, "arranged to fail"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_refused_in_ollamas_shape(case: str, http: httpx.AsyncClient) -> None:
    body, status, words = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await http.post("/api/embed", content=content)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert words in response.json()["error"]


async def test_a_path_that_is_not_served_tells_those_that_are(http: httpx.AsyncClient) -> None:
    for method, path, status in (("POST", "/api/chat", 404), ("GET", "/api/embed", 405), ("DELETE", "/api/delete", 404)):
        response = await http.request(method, path)
        assert response.status_code == status
        assert set(response.json()) == {"error"}
    assert "POST /api/embed" in (await http.post("/api/generate")).json()["error"]
