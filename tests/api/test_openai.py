"""The OpenAI API on the daemon's socket: its shapes, its errors and its promises, before a fake host."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from google.protobuf.json_format import MessageToJson
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.openai.app import _encode
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Role, Truncate, VectorSpace
from runed.errors import BackendUnavailableError
from tests.api.conftest import Serve, Served
from tests.fakes.fake_host import DIM, WAIT, vector_of
from tests.server.clients import RawClient
from tests.support import capture_logs, eventually

EMBEDDINGS = "/v1/embeddings"
LIMIT = 4 * 1024 * 1024


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(served) as client:
        yield client


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The log entries of the test."""
    with capture_logs() as lines:
        yield lines


def client_for(served: Served) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(served.path))
    return httpx.AsyncClient(transport=transport, base_url="http://runed", timeout=10)


def refusal(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a response, and check that it has OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert "\n" not in error["message"]
    return error


def shortest(vector: bytes) -> list[float]:
    """Return the numbers that JSON has for a vector."""
    return [float(str(value)) for value in np.frombuffer(vector, "<f4")]  # NumPy's str has the shortest decimal


async def test_one_text_and_several_are_answered_in_order(http: httpx.AsyncClient, served: Served) -> None:
    one = (await http.post(EMBEDDINGS, json={"input": "first", "model": "text-embedding-3-small"})).json()
    assert one == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": shortest(vector_of("first"))}],
        "model": "fake.f32",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    texts = ["a b c", "d", "a b c"]
    several = (await http.post(EMBEDDINGS, json={"input": texts, "model": "fake"})).json()
    assert [item["index"] for item in several["data"]] == [0, 1, 2]
    for item, text in zip(several["data"], texts, strict=True):
        assert np.array_equal(np.array(item["embedding"], "<f4"), np.frombuffer(vector_of(text), "<f4"))
    assert several["usage"] == {"prompt_tokens": 13, "total_tokens": 13}
    assert [asked.texts for asked in served.host.asked] == [["first"], texts]


async def test_base64_is_the_very_float32_bytes(http: httpx.AsyncClient) -> None:
    body = {"input": ["x", "y"], "model": "FAKE.F32", "encoding_format": "base64", "dimensions": 4}
    answer = (await http.post(EMBEDDINGS, json=body)).json()
    vectors = [base64.b64decode(item["embedding"], validate=True) for item in answer["data"]]
    assert vectors == [vector_of("x", 4), vector_of("y", 4)]


async def test_options_of_the_daemon_may_come_along_and_what_is_unknown_is_ignored(
    http: httpx.AsyncClient, served: Served
) -> None:
    nothing = {"model": None, "encoding_format": None, "dimensions": None, "user": {"any": ["thing"]}, "unknown": [[[1]]]}
    assert (await http.post(EMBEDDINGS, json={"input": "x"} | nothing)).status_code == 200
    some = {"dimensions": 5, "role": "query", "instruction": "find", "truncate": "end", "lane": "bulk"}
    assert (await http.post(EMBEDDINGS, json={"input": "x"} | some)).status_code == 200
    assert [asked.options for asked in served.host.asked] == [
        EmbedOptions(),
        EmbedOptions(lane=Lane.BULK, role=Role.QUERY, instruction="find", dimensions=5, truncate=Truncate.END),
    ]


async def test_models_are_listed_and_found_by_each_of_their_names(http: httpx.AsyncClient) -> None:
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "runed"} for name in ("fake.f32", "fake.q8_0", "other")]
    assert (await http.get("/v1/models")).json() == {"object": "list", "data": models}
    for name in ("fake.f32", "FAKE.F32", "fake", "sha256:1", "sha256%3A1", "text-embedding-ada-002"):
        assert (await http.get(f"/v1/models/{name}")).json() == models[0]
    assert (await http.get("/v1/models/other")).json() == models[2]
    assert (await http.head("/v1/models")).status_code == 200


async def test_the_named_model_answers(http: httpx.AsyncClient, served: Served) -> None:
    asked = {
        None: "fake.f32",
        "": "fake.f32",
        "text-embedding-3-small": "fake.f32",
        "text-embedding-3-large": "fake.f32",
        "text-embedding-ada-002": "fake.f32",
        "Fake": "fake.f32",
        "sha256:1": "fake.f32",  # an answer of an earlier version could name it so
        "fake.q8_0": "fake.q8_0",
        "OTHER": "other",
    }
    for name, answering in asked.items():
        answer = await http.post(EMBEDDINGS, json={"input": "x", "model": name})
        assert (answer.status_code, answer.json()["model"]) == (200, answering)
    assert [call.options.model for call in served.host.asked] == ["" if name in {None, "sha256:1"} else name for name in asked]


@pytest.mark.parametrize("name", ["gpt-4", "text-embedding-4", "Qwen/Qwen3-Embedding-8B", "../fake", "fake.f16", "f\u0000"])
async def test_an_unknown_model_is_not_found_and_the_others_are_told(name: str, http: httpx.AsyncClient) -> None:
    responses = [
        await http.post(EMBEDDINGS, json={"input": "x", "model": name}),
        await http.get(f"/v1/models/{quote(name, safe='')}"),
    ]
    for response in responses:
        assert response.status_code == 404
        error = refusal(response)
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
        assert "fake.f32, fake.q8_0, other" in error["message"]
        assert response.headers["x-should-retry"] == "false"


SECRET = "tangerine-otter"

BAD_BODIES: dict[str, tuple[bytes, str, str | None, str]] = {
    "no JSON": (b"{", "MALFORMED_REQUEST", None, "not valid JSON"),
    "no body": (b"", "MALFORMED_REQUEST", None, "not valid JSON"),
    "text behind the JSON": (b'{"input": "x"} tangerine-otter', "MALFORMED_REQUEST", None, "not valid JSON"),
    "no object": (b'["tangerine-otter"]', "MALFORMED_REQUEST", None, "no JSON object"),
    "deep": (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "MALFORMED_REQUEST", None, "not valid JSON"),
    "deep where nobody looks": (
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "MALFORMED_REQUEST",
        None,
        "not valid JSON",
    ),
    "invalid UTF-8": (b'{"input": "\xff"}', "MALFORMED_REQUEST", None, "byte 11 is not UTF-8"),
    "half a surrogate": (b'{"input": "\\ud800"}', "INVALID_TEXT", "input", "half of a surrogate pair"),
    "half a surrogate in a format": (
        b'{"input": "x", "encoding_format": "\\ud800"}',
        "MALFORMED_REQUEST",
        "encoding_format",
        "half of a surrogate pair",
    ),
    "no input": (b'{"model": "fake"}', "INVALID_REQUEST", "input", "input is missing"),
    "null": (b'{"input": null}', "INVALID_REQUEST", "input", "neither a string nor a list"),
    "number": (b'{"input": 7}', "INVALID_REQUEST", "input", "neither a string nor a list"),
    "object": (b'{"input": {"text": "tangerine-otter"}}', "INVALID_REQUEST", "input", "neither a string nor a list"),
    "mixed list": (b'{"input": ["tangerine-otter", 7]}', "INVALID_REQUEST", "input", "neither a string nor a list"),
    "tokens": (b'{"input": [1, 2, 3]}', "INVALID_REQUEST", "input", "check_embedding_ctx_length=False"),
    "lists of tokens": (b'{"input": [ [1, 2], [3]]}', "INVALID_REQUEST", "input", "check_embedding_ctx_length=False"),
    "empty list": (b'{"input": []}', "EMPTY_BATCH", "input", "no text"),
    "empty text": (b'{"input": ""}', "EMPTY_TEXT", "input", "empty"),
    "long text": (b'{"input": "' + b"word " * 20 + b'"}', "TEXT_TOO_LONG", "input", "too long"),
    "model": (b'{"input": "x", "model": 7}', "INVALID_REQUEST", "model", "a string"),
    "format": (b'{"input": "x", "encoding_format": "tangerine-otter"}', "INVALID_REQUEST", "encoding_format", '"base64"'),
    "no dimensions": (b'{"input": "x", "dimensions": 0}', "INVALID_REQUEST", "dimensions", "from 1 to 4294967295"),
    "dimensions of many digits": (
        b'{"input": "x", "dimensions": ' + b"9" * 4000 + b"}",
        "INVALID_REQUEST",
        "dimensions",
        "from 1 to 4294967295",
    ),
    "many dimensions": (b'{"input": "x", "dimensions": 1e99}', "INVALID_REQUEST", "dimensions", "whole number"),
    "dimensions as text": (b'{"input": "x", "dimensions": "tangerine-otter"}', "INVALID_REQUEST", "dimensions", "whole number"),
    "dimensions as boolean": (b'{"input": "x", "dimensions": true}', "INVALID_REQUEST", "dimensions", "whole number"),
    "role": (b'{"input": "x", "role": "tangerine-otter"}', "INVALID_REQUEST", "role", '"query" or "document"'),
    "truncate": (b'{"input": "x", "truncate": true}', "INVALID_REQUEST", "truncate", '"none", "end" or "start"'),
    "lane": (b'{"input": "x", "lane": "fast"}', "INVALID_REQUEST", "lane", '"bulk"'),
    "instruction": (b'{"input": "x", "instruction": ["tangerine-otter"]}', "INVALID_REQUEST", "instruction", "a string"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_bad_body_is_refused_with_reason_parameter_and_words(case: str, http: httpx.AsyncClient, log: list[Any]) -> None:
    body, code, param, words = BAD_BODIES[case]
    response = await http.post(EMBEDDINGS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = refusal(response)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert words in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert SECRET not in response.text + json.dumps(log)
    assert [line["code"] for line in log if line["event"] == "embedding call"] == ["invalid_argument"]
    assert not [line for line in log if line["log_level"] == "error"]
    assert (await http.post(EMBEDDINGS, json={"input": "still there"})).status_code == 200


async def test_a_member_that_is_not_read_may_have_any_name(http: httpx.AsyncClient) -> None:
    body = b'{"input": "x", "\\ud800": "\\udfff", "": [null], "user": "\\ud800"}'
    response = await http.post(EMBEDDINGS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", EMBEDDINGS, 405, "POST"),
        ("PUT", EMBEDDINGS, 405, "POST"),
        ("OPTIONS", EMBEDDINGS, 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("POST", "/v1/chat/completions", 404, "POST /v1/embeddings"),
        ("POST", "/v1/embeddings/", 404, "POST /v1/embeddings"),
        ("GET", "/v1/", 404, "GET /v1/models"),
    ],
)
async def test_wrong_path_or_method_is_told_the_right_one(
    method: str, path: str, status: int, words: str, http: httpx.AsyncClient
) -> None:
    response = await http.request(method, path, headers={"origin": "https://evil.example"})
    assert response.status_code == status
    error = refusal(response)
    assert error["code"] == {404: "UNIMPLEMENTED", 405: "MALFORMED_REQUEST"}[status]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert ("allow" in response.headers) == (status == 405)
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_wrong_type_is_told_the_right_one(headers: dict[str, str], http: httpx.AsyncClient) -> None:
    response = await http.post(EMBEDDINGS, content=b'{"input": "x"}', headers=headers)
    assert response.status_code == 415
    assert refusal(response)["code"] == "MALFORMED_REQUEST"
    good = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    assert (await http.post(EMBEDDINGS, content=b'{"input": "x"}', headers=good)).status_code == 200


async def test_request_may_be_as_large_as_the_limit_and_no_larger(http: httpx.AsyncClient, served: Served) -> None:
    shell = b'{"input": "%b", "truncate": "end"}'
    fits = shell % (b"x" * (LIMIT - len(shell) + 2))
    assert len(fits) == LIMIT
    headers = {"content-type": "application/json"}
    assert (await http.post(EMBEDDINGS, content=fits, headers=headers)).status_code == 200
    response = await http.post(EMBEDDINGS, content=fits + b" ", headers=headers)
    assert response.status_code == 413
    error = refusal(response)
    assert (error["code"], error["type"]) == ("REQUEST_TOO_LARGE", "invalid_request_error")
    assert str(LIMIT) in error["message"]
    assert len(served.host.asked) == 1


@pytest.mark.parametrize(
    ("reason", "status", "kind", "retried"),
    [
        ("QUEUE_FULL", 429, "rate_limit_error", True),
        ("BOOTSTRAPPING", 503, "server_error", True),
        ("BACKEND_UNAVAILABLE", 503, "server_error", True),
        ("SHUTTING_DOWN", 503, "server_error", True),
        ("DEADLINE_EXCEEDED", 504, "server_error", True),
        ("BACKEND_FAULT", 500, "server_error", False),
        ("BAD_DIMENSIONS", 400, "invalid_request_error", False),
        ("BAD_INSTRUCTION", 400, "invalid_request_error", False),
    ],
)
async def test_error_of_the_daemon_has_status_reason_and_advice_to_retry(
    reason: str,
    status: int,
    kind: str,
    retried: bool,  # noqa: FBT001 # pytest passes it by name
    http: httpx.AsyncClient,
) -> None:
    response = await http.post(EMBEDDINGS, json={"input": ["fine", f"fail:{reason}"]})
    assert response.status_code == status
    error = refusal(response)
    assert (error["code"], error["type"], error["message"]) == (reason, kind, "arranged to fail")
    advice = {name: response.headers.get(name) for name in ("x-should-retry", "retry-after", "retry-after-ms")}
    if retried:
        assert advice == {"x-should-retry": "true", "retry-after": "2", "retry-after-ms": "1500"}
    else:
        assert advice == {"x-should-retry": "false", "retry-after": None, "retry-after-ms": None}


async def test_models_before_they_are_known_are_worth_another_try(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown() -> None:
        raise BackendUnavailableError("the manifest cannot be had")

    monkeypatch.setattr(served.host, "models", unknown)
    async with client_for(served) as http:
        response = await http.get("/v1/models")
    assert (response.status_code, refusal(response)["code"]) == (503, "BACKEND_UNAVAILABLE")
    assert response.headers["retry-after"] == "1"


async def test_bug_of_ours_shows_nothing_and_costs_only_its_request(
    served: Served, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(SECRET)

    async with client_for(served) as http:
        with monkeypatch.context() as patch:
            patch.setattr(served.host, "embed", fail)
            response = await http.post(EMBEDDINGS, json={"input": SECRET})
        assert (response.status_code, refusal(response)["code"]) == (500, "INTERNAL")
        assert response.headers["x-should-retry"] == "false"
        assert (await http.post(EMBEDDINGS, json={"input": "x"})).status_code == 200
    assert SECRET not in response.text + json.dumps(log)
    assert [line["error_type"] for line in log if line["log_level"] == "error"] == ["builtins.ZeroDivisionError"]
    assert [line["code"] for line in log if line["event"] == "embedding call"] == ["internal", "ok"]


async def test_each_call_leaves_the_line_of_any_embedding_call(http: httpx.AsyncClient, log: list[Any]) -> None:
    await http.post(EMBEDDINGS, json={"input": ["cached x", "y", SECRET + " word" * 20], "truncate": "end", "lane": "bulk"})
    await http.post(EMBEDDINGS, json={"input": "fail:QUEUE_FULL"})
    done, failed = (line for line in log if line["event"] == "embedding call")
    assert {name: value for name, value in done.items() if name not in {"event", "log_level", "duration_ms"}} == {
        "method": "OpenAI",
        "lane": "bulk",
        "texts": 3,
        "tokens": 4 + 3 + 12,
        "hits": 1,
        "truncated": 1,
        "refused": 0,
        "code": "ok",
    }
    assert (failed["lane"], failed["texts"], failed["code"]) == ("auto", 1, "resource_exhausted")
    assert SECRET not in json.dumps(log)


async def test_caller_is_its_connection_whatever_it_speaks(http: httpx.AsyncClient, served: Served) -> None:
    await http.post(EMBEDDINGS, json={"input": "x"})
    await http.post(
        "/runed.v1.RunedService/Embed",
        content=MessageToJson(pb.EmbedRequest(text="y")),
        headers={"content-type": "application/json"},
    )
    async with client_for(served) as other:
        await other.post(EMBEDDINGS, json={"input": "z"})
    first, same, second = (asked.client for asked in served.host.asked)
    assert first == same != second


@pytest.mark.parametrize("part", ["head", "body"])
async def test_client_that_goes_drops_its_work(part: str, served: Served, log: list[Any]) -> None:
    body = json.dumps({"input": WAIT}).encode()
    _, writer = await asyncio.open_unix_connection(served.path)
    head = f"POST {EMBEDDINGS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + (body if part == "body" else body[:5]))
    if part == "body":
        await eventually(lambda: served.host.waiting == 1)
    else:
        await writer.drain()
    writer.close()
    await eventually(lambda: any(line["event"] == "embedding call" for line in log))
    [line] = (line for line in log if line["event"] == "embedding call")
    assert (line["code"], line["texts"]) == ("canceled", 1 if part == "body" else 0)
    assert (served.host.busy, served.host.cancelled) == (0, 1 if part == "body" else 0)
    assert not [line for line in log if line["log_level"] == "error"]


async def test_http2_request_that_is_reset_drops_its_work_and_no_other(served: Served, log: list[Any]) -> None:
    headers = {b"content-type": b"application/json"}
    async with await RawClient.connect(served.path) as client:
        given_up, kept = (
            client.open(EMBEDDINGS.encode(), json.dumps({"input": WAIT}).encode(), headers=headers) for _ in range(2)
        )
        await client.flush()
        await eventually(lambda: served.host.waiting == 2)
        client.h2.reset_stream(given_up, 8)
        await client.flush()
        await eventually(lambda: served.host.waiting == 1)
        served.host.let_go()
        exchange = await client.over(kept)
        assert exchange.headers[b":status"] == b"200"
        assert len(json.loads(exchange.body)["data"][0]["embedding"]) == DIM
    assert served.host.cancelled == 1
    assert sorted(line["code"] for line in log if line["event"] == "embedding call") == ["canceled", "ok"]


async def test_shutdown_that_does_not_wait_cancels_the_work(serve: Serve, log: list[Any]) -> None:
    async with serve() as served, client_for(served) as http:
        call = asyncio.create_task(http.post(EMBEDDINGS, json={"input": WAIT}))
        await eventually(lambda: served.host.waiting == 1)
        await served.server.stop(0)
        assert isinstance(await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), 5), list)
        assert (served.host.busy, served.host.cancelled) == (0, 1)
    assert [line["code"] for line in log if line["event"] == "embedding call"] == ["canceled"]
    assert not [line for line in log if line["log_level"] == "error"]


async def test_others_get_their_turn_while_a_large_answer_is_written() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    items = [Embedding(vector=vector_of("x", 1024), tokens=3, total_tokens=3)] * 1000
    taking = asyncio.create_task(take_turns())
    content = await _encode(EmbedAnswer(items=items, space=VectorSpace(fingerprint="fp", prompt="")), as_base64=False)
    taking.cancel()
    assert len(json.loads(content)["data"]) == 1000
    assert turns >= 10
