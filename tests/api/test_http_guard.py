"""The loopback port refuses calls without the token or for another host, and serves the OpenAI API only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded

from runed.api.app import build_port_app
from runed.api.token_guard import token_gate
from runed.lifecycle.loopback import Loopback
from runed.server import Head, Server
from tests.fakes.fake_host import WAIT, FakeHost
from tests.support import capture_logs, eventually, no_task_but

PATHS = [
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("OPTIONS", "/v1/embeddings"),
    ("GET", "/metrics"),
    ("POST", "/runed.v1.RunedService/Shutdown"),
    ("GET", "/"),
    ("POST", "/api/embed"),
    ("GET", "/api/tags"),
    ("POST", "/embed"),
    ("HEAD", "/v1/models"),
]


@dataclass(frozen=True)
class Port:
    """A fake host, served on a loopback port."""

    host: FakeHost
    http: Loopback
    server: Server

    @property
    def right(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.http.token}"}

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.http.url, headers=headers, timeout=10)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    host = FakeHost()
    before = asyncio.all_tasks()
    with Loopback.open(("127.0.0.1", 0), tmp_path / "http.token") as http:
        server = Server(build_port_app(host), http.sock, gate=token_gate(token=http.token, port=http.port))
        await server.start()
        try:
            yield Port(host, http, server)
        finally:
            await server.stop(0)
    await no_task_but(before)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The log entries of the test."""
    with capture_logs() as lines:
        yield lines


def assert_refused(response: httpx.Response, status: int, kind: str, code: str) -> None:
    assert response.status_code == status
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert response.headers["x-should-retry"] == "false"
    if response.request.method != "HEAD":
        error, path = response.json()["error"], response.request.url.path
        if path.startswith("/api/"):  # Ollama's programs read a text there
            assert isinstance(error, str)
        elif path in {"/embed", "/rerank", "/tokenize", "/info", "/health"}:
            assert isinstance(error, str)
            assert response.json()["error_type"] == "Validation"
        else:
            assert (error["type"], error["code"], error["param"]) == (kind, code, None)


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_no_path_is_open_without_the_token(method: str, path: str, port: Port, log: list[Any]) -> None:
    token = port.http.token
    assert token is not None
    wrong = [
        None,
        "",
        "Bearer",
        f"Bearer {token[:-1]}",
        f"Bearer {token}x",
        f"Bearer {token} {token}",
        f"Basic {token}",
        token,
        f"Bearer \xff{token}",
    ]
    async with port.client() as client:
        for value in wrong:
            headers = [] if value is None else [(b"authorization", value.encode("latin-1"))]
            response = await client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
            assert_refused(response, 401, "authentication_error", "UNAUTHENTICATED")
        both = [("authorization", f"Bearer {token}"), ("authorization", "Bearer x")]
        assert_refused(await client.request(method, path, headers=both), 401, "authentication_error", "UNAUTHENTICATED")
    assert not port.host.asked
    assert port.host.grace is None
    assert token not in json.dumps(log)
    assert {line["reason"] for line in log} == {"UNAUTHENTICATED"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_the_token_opens_the_api(scheme: str, port: Port) -> None:
    async with port.client(authorization=f"{scheme} {port.http.token}") as client:
        assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "fake.f32"
    assert port.host.asked[0].client.startswith("tcp:")


@pytest.mark.parametrize("path", ["/runed.v1.RunedService/Shutdown", "/runed.v1.RunedService/Embed", "/rpc"])
async def test_nothing_but_the_apis_and_the_metrics_is_served(path: str, port: Port) -> None:
    async with port.client(**port.right) as client:
        for method in ("GET", "POST"):
            response = await client.request(method, path)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "UNIMPLEMENTED")
    assert port.host.grace is None


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_foreign_host_is_refused_even_with_the_token(method: str, path: str, port: Port, log: list[Any]) -> None:
    number = port.http.port
    hosts = [
        f"evil.example:{number}",
        "evil.example",
        "127.0.0.1",
        f"127.0.0.1:{number + 1}",
        f"localhost.evil.example:{number}",
        f"127.0.0.1:{number}.evil.example",
        f"127.0.0.1:{number},evil.example",
        "",
    ]
    async with port.client(**port.right) as client:
        for host in hosts:
            assert_refused(await client.request(method, path, headers={"host": host}), 403, "permission_error", "FOREIGN_HOST")
    assert not port.host.asked
    assert {line["reason"] for line in log} == {"FOREIGN_HOST"}


async def test_every_name_of_loopback_is_a_host(port: Port) -> None:
    async with port.client(**port.right) as client:
        for name in ("127.0.0.1", "localhost", "LocalHost", "[::1]"):
            response = await client.get("/v1/models", headers={"host": f"{name}:{port.http.port}"})
            assert response.status_code == 200


def test_default_port_of_http_may_be_left_out() -> None:
    gate = token_gate(token="t" * 16, port=80)
    token = (b"authorization", b"Bearer " + b"t" * 16)
    assert gate(Head(b"GET", b"/", [(b"host", b"localhost"), token], "1.1")) is None
    refusal = gate(Head(b"GET", b"/", [(b"host", b"evil.example"), token], "1.1"))
    assert refusal is not None
    assert refusal.status == 403


def test_port_for_other_machines_takes_each_host_with_the_token_and_none_without() -> None:
    gate = token_gate(token="t" * 16, port=8321, exposed=True)
    token = (b"authorization", b"Bearer " + b"t" * 16)
    for host in (b"runed:8321", b"10.1.2.3", b"localhost:8321"):
        assert gate(Head(b"GET", b"/v1/models", [(b"host", host), token], "1.1")) is None
        refusal = gate(Head(b"GET", b"/v1/models", [(b"host", host)], "1.1"))
        assert refusal is not None
        assert refusal.status == 401
    with pytest.raises(ValueError, match="needs a token"):
        token_gate(token=None, port=8321, exposed=True)


async def test_request_of_http_1_0_without_a_host_is_refused(port: Port) -> None:
    reader, writer = await asyncio.open_connection(*port.http.sock.getsockname()[:2])
    writer.write(f"GET /v1/models HTTP/1.0\r\nauthorization: Bearer {port.http.token}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b" 403 " in answer.split(b"\r\n")[0]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("authority", "token", "status"), [("", True, b"403"), ("evil.example", True, b"403"), (None, False, b"401")]
)
async def test_http2_is_guarded_too(authority: str | None, token: bool, status: bytes, port: Port) -> None:  # noqa: FBT001 # pytest passes it by name
    reader, writer = await asyncio.open_connection(*port.http.sock.getsockname()[:2])
    h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False, header_encoding=None))
    h2.initiate_connection()
    headers = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/v1/models"),
        (":authority", f"localhost:{port.http.port}" if authority is None else authority),
    ]
    h2.send_headers(1, headers + ([("authorization", f"Bearer {port.http.token}")] if token else []), end_stream=True)
    writer.write(h2.data_to_send())
    events: list[Any] = []
    async with asyncio.timeout(5):
        while not any(isinstance(event, StreamEnded) for event in events) and (data := await reader.read(65536)):
            events += h2.receive_data(data)
    [response] = (event for event in events if isinstance(event, ResponseReceived))
    assert dict(response.headers)[b":status"] == status
    writer.transport.abort()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_large_body_with_a_wrong_token_is_refused_unread(port: Port) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    async with port.client() as client:
        response = await client.post("/v1/embeddings", content=endless())
    assert_refused(response, 401, "authentication_error", "UNAUTHENTICATED")


async def test_client_of_the_port_that_goes_drops_its_work(port: Port) -> None:
    body = json.dumps({"input": WAIT}).encode()
    _, writer = await asyncio.open_connection(*port.http.sock.getsockname()[:2])
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        f"host: localhost:{port.http.port}",
        f"authorization: Bearer {port.http.token}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await eventually(lambda: port.host.waiting == 1)
    writer.close()
    await eventually(lambda: port.host.busy == 0 and port.host.cancelled == 1)


async def test_stopping_lets_what_is_in_flight_finish_and_closes_the_port(port: Port) -> None:
    address = port.http.sock.getsockname()[:2]
    async with port.client(**port.right) as client:
        call = asyncio.create_task(client.post("/v1/embeddings", json={"input": WAIT}))
        await eventually(lambda: port.host.waiting == 1)
        stopping = asyncio.create_task(port.server.stop(10))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        port.host.let_go()
        assert (await call).status_code == 200
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)


# Without a token


@pytest.fixture
async def open_port() -> AsyncIterator[Port]:
    host = FakeHost()
    before = asyncio.all_tasks()
    with Loopback.open(("127.0.0.1", 0), None) as http:
        server = Server(build_port_app(host), http.sock, gate=token_gate(token=http.token, port=http.port))
        await server.start()
        try:
            yield Port(host, http, server)
        finally:
            await server.stop(0)
    await no_task_but(before)


async def test_programs_without_a_token_are_served_where_none_is_needed(open_port: Port) -> None:
    async with open_port.client() as client:
        assert (await client.post("/api/embed", json={"input": "x"})).status_code == 200
        assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 200
        assert (await client.post("/embed", json={"inputs": "x"})).status_code == 200
        own = {"origin": f"http://localhost:{open_port.http.port}", "sec-fetch-site": "same-origin"}
        assert (await client.get("/api/tags", headers=own)).status_code == 200
        assert (await client.get("/v1/models", headers={"authorization": "Bearer anything"})).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post("/runed.v1.RunedService/Shutdown")).status_code == 404
    assert open_port.host.grace is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_pages_of_other_hosts_are_refused_where_no_token_is_needed(headers: dict[str, str], open_port: Port) -> None:
    async with open_port.client(**headers) as client:
        for method, path in (("POST", "/api/embed"), ("GET", "/api/tags"), ("POST", "/"), ("OPTIONS", "/v1/embeddings")):
            response = await client.request(method, path, content=b'{"input": "x"}' if method == "POST" else None)
            assert_refused(response, 403, "permission_error", "FOREIGN_ORIGIN")
    assert not open_port.host.asked


async def test_a_foreign_host_is_refused_where_no_token_is_needed(open_port: Port) -> None:
    async with open_port.client(host=f"evil.example:{open_port.http.port}") as client:
        assert_refused(await client.get("/api/tags"), 403, "permission_error", "FOREIGN_HOST")
