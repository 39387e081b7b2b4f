"""Each call of each face is counted once, and no client can make the number of counters grow."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from prometheus_client.parser import text_string_to_metric_families

from runed.api.app import build_app
from runed.metrics import Metrics
from runed.server import Server
from tests.fakes.fake_host import FakeHost
from tests.support import eventually

RPC = "/runed.v1.RunedService"


@dataclass
class Counted:
    """A fake host whose calls are counted."""

    path: Path
    host: FakeHost
    metrics: Metrics = field(default_factory=Metrics)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(self.path)), base_url="http://runed", timeout=30)

    def calls(self) -> dict[tuple[str, str], float]:
        """Return the number of calls by method and code."""
        return {
            (sample.labels["method"], sample.labels["code"]): sample.value
            for family in text_string_to_metric_families(self.metrics.render().decode())
            for sample in family.samples
            if sample.name == "runed_request_duration_seconds_count"
        }

    def errors(self, name: str = "runed_request_errors_total") -> dict[str, float]:
        """Return the number of errors by reason."""
        return {
            sample.labels["reason"]: sample.value
            for family in text_string_to_metric_families(self.metrics.render().decode())
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
async def counted(home: Path) -> AsyncIterator[Counted]:
    result = Counted(home / "s", FakeHost())
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(result.path))
        sock.listen()
        server = Server(build_app(result.host, result.metrics.called), sock)
        await server.start()
        try:
            yield result
        finally:
            await server.stop(0)


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        (f"{RPC}/Embed", {"text": "tea"}, "Embed"),
        (f"{RPC}/EmbedBatch", {"texts": ["tea"]}, "EmbedBatch"),
        (f"{RPC}/Health", {}, "Health"),
        ("/grpc.health.v1.Health/Check", {}, "Check"),
        ("/v1/embeddings", {"input": "tea"}, "/v1/embeddings"),
        ("/api/embed", {"input": "tea"}, "/api/embed"),
        ("/api/embeddings", {"prompt": "tea"}, "/api/embeddings"),
        ("/embed", {"inputs": "tea"}, "/embed"),
        ("/", {"inputs": "tea"}, "/embed"),
    ],
)
async def test_a_call_that_is_answered(path: str, body: dict[str, object], method: str, counted: Counted) -> None:
    async with counted.client() as client:
        assert (await client.post(path, json=body)).status_code == 200
    assert counted.calls() == {(method, "ok"): 1}
    assert not counted.errors()


@pytest.mark.parametrize(
    ("path", "body", "call", "reason"),
    [
        (f"{RPC}/Embed", {"text": "fail:QUEUE_FULL"}, ("Embed", "resource_exhausted"), "QUEUE_FULL"),
        (f"{RPC}/Embed", {"text": 1}, ("Embed", "invalid_argument"), "MALFORMED_REQUEST"),
        (f"{RPC}/EmbedStream", {}, ("EmbedStream", "invalid_argument"), "MALFORMED_REQUEST"),
        (f"{RPC}/Nothing", {}, ("other", "unimplemented"), "UNIMPLEMENTED"),
        ("/v1/embeddings", {"input": "fail:TEXT_TOO_LONG"}, ("/v1/embeddings", "invalid_argument"), "TEXT_TOO_LONG"),
        ("/v1/embeddings", {"input": 1}, ("/v1/embeddings", "invalid_argument"), "INVALID_REQUEST"),
        ("/api/tags", {}, ("/api/tags", "invalid_argument"), "MALFORMED_REQUEST"),
        ("/api/nothing", {}, ("other", "unimplemented"), "UNIMPLEMENTED"),
        ("/rerank", {"query": "a"}, ("/rerank", "invalid_argument"), "INVALID_REQUEST"),
    ],
)
async def test_a_call_that_is_refused(
    path: str, body: dict[str, object], call: tuple[str, str], reason: str, counted: Counted
) -> None:
    async with counted.client() as client:
        assert (await client.post(path, json=body)).status_code >= 400
    assert counted.calls() == {call: 1}
    assert counted.errors() == {reason: 1}


async def test_a_wrong_content_type_and_a_wrong_http_method(counted: Counted) -> None:
    async with counted.client() as client:
        await client.post(f"{RPC}/Embed", content=b"x", headers={"content-type": "text/plain"})
        await client.put(f"{RPC}/Embed", content=b"x", headers={"content-type": "application/json"})
        await client.get("/v1/embeddings")
    assert counted.calls() == {("Embed", "invalid_argument"): 2, ("/v1/embeddings", "invalid_argument"): 1}
    assert counted.errors() == {"MALFORMED_REQUEST": 3}


async def test_texts_with_errors_of_their_own(counted: Counted) -> None:
    texts = ["tea", "fail:TEXT_TOO_LONG", "fail:TEXT_TOO_LONG", "fail:EMPTY_TEXT"]
    async with counted.client() as client:
        await client.post(f"{RPC}/EmbedBatch", json={"texts": texts, "perItemErrors": True})
    assert counted.calls() == {("EmbedBatch", "ok"): 1}
    assert counted.errors("runed_text_errors_total") == {"TEXT_TOO_LONG": 2, "EMPTY_TEXT": 1}
    assert not counted.errors()


@pytest.mark.parametrize(
    ("path", "method"), [(f"{RPC}/Embed", "Embed"), ("/v1/embeddings", "/v1/embeddings")], ids=["RPC", "OpenAI"]
)
async def test_a_client_that_leaves(path: str, method: str, counted: Counted) -> None:
    async with counted.client() as client:
        call = asyncio.create_task(client.post(path, json={"text": "wait", "input": "wait"}))
        await eventually(lambda: counted.host.waiting == 1)
        call.cancel()
        await asyncio.wait([call])
    await eventually(lambda: bool(counted.calls()))
    assert counted.calls() == {(method, "canceled"): 1}
    assert counted.errors() == {"CANCELED": 1}


async def test_nothing_that_a_client_sends_adds_a_counter_of_its_own(counted: Counted) -> None:
    async with counted.client() as client:
        for number in range(50):
            junk = f"junk{number}"
            await client.post(f"/{junk}", json={})
            await client.post(f"{RPC}/{junk}", json={})
            await client.post(f"/v1/{junk}", json={})
            await client.post(f"/api/{junk}", json={})
            await client.get(f"/v1/models/{junk}")
            await client.request(junk.upper(), "/v1/embeddings")
            await client.post("/v1/embeddings", json={"input": "tea", "model": junk})
            await client.post(f"{RPC}/Embed", json={"text": "tea", "model": junk, junk: junk})
    assert {method for method, _ in counted.calls()} <= {"other", "Embed", "/v1/embeddings", "/v1/models/{id:path}"}
    assert "junk" not in counted.metrics.render().decode().lower()
    assert sum(counted.calls().values()) == 400


# The details of errors in JSON


def detail_of(error: dict[str, list[dict[str, object]]]) -> tuple[ErrorInfo, object]:
    """Return the first detail of an error, from its bytes and in its readable form."""
    detail = error["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    value = str(detail["value"])
    return ErrorInfo.FromString(base64.b64decode(value + "=" * (-len(value) % 4))), detail["debug"]


@pytest.mark.parametrize(
    ("path", "content", "kind", "reason", "metadata"),
    [
        (f"{RPC}/Embed", b'{"text": "fail:TEXT_TOO_LONG"}', "application/json", "TEXT_TOO_LONG", True),
        (f"{RPC}/Embed", b"{", "application/json", "MALFORMED_REQUEST", False),
        (f"{RPC}/Embed", b"{}", "text/plain", "MALFORMED_REQUEST", False),
        (f"{RPC}/Embed", b"\xff", "application/proto", "MALFORMED_REQUEST", False),
        (f"{RPC}/Nothing", b"{}", "application/json", "UNIMPLEMENTED", False),
    ],
    ids=["of the daemon", "of the reader", "of the library", "of a message", "of a path"],
)
async def test_an_error_tells_its_reason_readably(
    path: str, content: bytes, kind: str, reason: str, counted: Counted, *, metadata: bool
) -> None:
    async with counted.client() as client:
        error = (await client.post(path, content=content, headers={"content-type": kind})).json()
    info, readable = detail_of(error)
    assert info.reason == reason
    told = {"reason": reason, "domain": "runed.v1"} | ({"metadata": dict(info.metadata)} if info.metadata else {})
    assert readable == told
    assert bool(info.metadata) == metadata


async def test_another_detail_is_readable_too(counted: Counted) -> None:
    async with counted.client() as client:
        error = (await client.post(f"{RPC}/Embed", json={"text": "fail:QUEUE_FULL"})).json()
    [_, retry] = error["details"]
    delay = RetryInfo.FromString(base64.b64decode(retry["value"] + "==")).retry_delay
    assert retry["type"] == "google.rpc.RetryInfo"
    assert float(retry["debug"]["retryDelay"].removesuffix("s")) == delay.ToMilliseconds() / 1000


async def test_the_end_of_a_stream_tells_its_reason_readably(counted: Counted) -> None:
    body = json.dumps({"items": [{"id": "1", "text": "break:BACKEND_UNAVAILABLE"}]}).encode()
    envelope = b"\0" + len(body).to_bytes(4, "big") + body
    transport = httpx.AsyncHTTPTransport(uds=str(counted.path), http1=False, http2=True)
    async with httpx.AsyncClient(transport=transport, timeout=30) as client:
        headers = {"content-type": "application/connect+json"}
        answer = (await client.post(f"http://runed{RPC}/EmbedStream", content=envelope, headers=headers)).content
    end = json.loads(answer[answer.index(b'{"error"') :])
    info, readable = detail_of(end["error"])
    assert info.reason == "BACKEND_UNAVAILABLE"
    assert readable == {"reason": "BACKEND_UNAVAILABLE", "domain": "runed.v1", "metadata": dict(info.metadata)}
    assert counted.calls() == {("EmbedStream", "unavailable"): 1}
