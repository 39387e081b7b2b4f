"""HTTP/1.1: keep-alive, early answers, slow peers, and the choice of the protocol."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.server import Budget, Server
from runed.server.http2 import PREFACE
from runed.server.stream import SLOW
from tests.server.app import MAX_REQUEST_BYTES, WAIT, Servicer
from tests.server.clients import SERVICE, stop_reading
from tests.server.conftest import Serve
from tests.support import eventually

JSON = {"content-type": "application/json"}
EMBED = f"http://runed{SERVICE}/Embed"


def head(body: bytes, *extra: str) -> bytes:
    """Return a request's head and body."""
    lines = [
        f"POST {SERVICE}/Embed HTTP/1.1",
        "host: runed",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def client_for(path: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=10)


async def test_json_over_a_kept_connection(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), client_for(path) as client:
        for _ in range(3):
            response = await client.post(EMBED, json={"text": "hello"})
            assert response.json() == {"vector": [1, 1, 1, 1]}
    assert list(servicer.clients) == ["unix:1"] * 3


async def test_small_response_is_one_write(
    path: Path, serve: Serve, servicer: Servicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    write = asyncio.StreamWriter.write

    def record(writer: asyncio.StreamWriter, data: bytes) -> None:
        writes.append(data)
        write(writer, data)

    def ask() -> bytes:
        with closing(http.client.HTTPConnection("runed", timeout=10)) as client:
            client.sock = socket.socket(socket.AF_UNIX)
            client.sock.connect(str(path))
            client.request("POST", f"{SERVICE}/Embed", b'{"text": "a"}', JSON)
            return client.getresponse().read()

    monkeypatch.setattr(asyncio.StreamWriter, "write", record)
    async with serve(servicer):
        assert json.loads(await asyncio.to_thread(ask)) == {"vector": [1, 1, 1, 1]}
    assert len(writes) == 1


async def test_large_bodies_pass_both_ways(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), client_for(path) as client:
        request = pb.EmbedBatchRequest(texts=["x" * (8 * 1024 * 1024), *["y"] * 2047])
        response = await client.post(
            f"http://runed{SERVICE}/EmbedBatch",
            content=request.SerializeToString(),
            headers={"content-type": "application/proto"},
        )
        assert len(pb.EmbedBatchResponse.FromString(response.content).embeddings) == 2048


async def test_oversize_request_is_told_why(path: Path, serve: Serve, servicer: Servicer) -> None:
    def post() -> tuple[int, dict[str, Any]]:
        client = http.client.HTTPConnection("runed", timeout=10)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(str(path))
        # http.client sends the whole request before it reads a byte. The server must not close the connection before that.
        client.request("POST", f"{SERVICE}/Embed", json.dumps({"text": "x" * (MAX_REQUEST_BYTES + 4_000_000)}), JSON)
        response = client.getresponse()
        answer = response.status, json.loads(response.read())
        client.close()
        return answer

    async with serve(servicer) as server:
        status, error = await asyncio.to_thread(post)
        assert (status, error["code"]) == (429, "resource_exhausted")
        await eventually(lambda: not server._connections)


@pytest.mark.parametrize(("sent", "ends"), [(len('{"text": ""}'), False), (3, True)], ids=["all of it", "a part of it"])
async def test_early_answer_says_that_the_connection_ends(path: Path, serve: Serve, sent: int, *, ends: bool) -> None:
    async def refuse(scope: dict[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    # Without that header, a client would send its next request on this connection, and lose it.
    body = b'{"text": ""}'
    async with serve(refuse):
        reader, writer = await asyncio.open_unix_connection(path)
        request = head(body)
        writer.write(request[: len(request) - len(body) + sent])
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert (b"connection: close" in answer.lower()) == ends
        writer.close()


async def test_lost_client_reaches_the_handler(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(head(b'{"text": "%s"}' % WAIT.encode()))
        await eventually(lambda: servicer.waiting == 1)
        writer.close()
        await eventually(lambda: servicer.cancelled == 1)
        await eventually(lambda: not server._connections)


async def test_client_lost_amid_its_body_leaves_nothing_behind(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(head(bytes(1000))[:-1])
        await eventually(lambda: len(server._connections) == 1)
        writer.close()
        await eventually(lambda: not server._connections)


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(head(b"")[:40], id="half a head"),
        pytest.param(PREFACE[:10], id="half a preface"),
        pytest.param(head(bytes(100))[:-1], id="all but the last byte of a body"),
    ],
)
async def test_client_that_does_not_go_on_is_cut_off(path: Path, serve: Serve, servicer: Servicer, beginning: bytes) -> None:
    async with serve(servicer, head_timeout=0.2, stall_timeout=0.2):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(beginning)
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()


async def test_slow_head_is_cut_off_though_it_makes_progress(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, head_timeout=0.3) as server:
        _, writer = await asyncio.open_unix_connection(path)
        await eventually(lambda: len(server._connections) == 1)
        with pytest.raises(ConnectionError):  # noqa: PT012 # which write meets the closed connection is up to the kernel
            for byte in head(b"") * 10:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()


async def test_idle_connection_outlives_every_timeout(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, head_timeout=0.1, stall_timeout=0.1), client_for(path) as client:
        for _ in range(2):
            assert (await client.post(EMBED, json={"text": "hello"})).status_code == 200
            await asyncio.sleep(0.5)
    assert list(servicer.clients) == ["unix:1"] * 2


async def test_handler_that_does_not_read_holds_up_its_client_and_not_memory(path: Path, serve: Serve) -> None:
    read = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[..., Any]) -> None:
        await read.wait()
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})

    size = 20_000_000
    async with serve(app) as server:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head(bytes(size), "connection: close"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        (connection,) = server._connections.values()
        (stream,) = connection._requests
        assert len(stream._body) < 512 * 1024
        read.set()
        response = await asyncio.wait_for(reader.read(), 10)
        assert str(size).encode() in response
        writer.close()


async def test_client_that_reads_nothing_is_cut_off(path: Path, serve: Serve) -> None:
    sent = 0

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[..., Any]) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await asyncio.wait_for(receive(), 3))["type"] != "http.disconnect":
            for _ in range(100):
                await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})
                sent += 1

    async with serve(app, stall_timeout=0.3) as server:
        _, writer = await asyncio.open_unix_connection(path)
        stop_reading(writer)
        writer.write(head(b""))
        await eventually(lambda: sent > 0 and not server._connections)
        writer.close()


async def test_client_that_pipelines_and_reads_nothing_leaves_nothing_behind_when_its_memory_is_needed(
    path: Path, sock: socket.socket
) -> None:
    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[..., Any]) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(12_000_000)})

    server = Server(app, sock, budget=Budget(256 * 1024))
    await server.start()
    _, writer = await asyncio.open_unix_connection(path)
    stop_reading(writer)
    writer.write(head(b"") + head(b""))
    await eventually(lambda: any(stream._sends_since for it in server._connections.values() for stream in it._requests))
    await asyncio.sleep(SLOW + 0.1)
    async with client_for(path) as client:
        assert (await client.post(EMBED, content=bytes(150_000))).status_code == 200
    await eventually(lambda: not server._connections)
    writer.close()
    await server.stop(0)


async def test_slow_reader_is_no_stalled_client(path: Path, serve: Serve) -> None:
    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(12_000_000)})

    async with serve(app, stall_timeout=0.5):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head(b"", "connection: close"))
        size = 0
        while chunk := await reader.read(256 * 1024):
            size += len(chunk)
            await asyncio.sleep(0.03)
        assert size > 12_000_000
        writer.close()


async def test_conversations_are_not_offered(path: Path, serve: Serve) -> None:
    async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(scope["extensions"]).encode()})

    async with serve(app), client_for(path) as client:
        assert (await client.get("http://runed/")).text == "{}"


async def test_pipelined_requests_are_answered_in_order(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head(b'{"text": "a"}') * 3 + head(b'{"text": "b"}', "connection: close"))
        response = await asyncio.wait_for(reader.read(), 3)
        assert response.count(b"HTTP/1.1 200") == 4
        writer.close()


@pytest.mark.parametrize(
    "upgrade",
    [
        ["connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"],
        [
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        ],
    ],
)
async def test_upgrades_are_ignored(path: Path, serve: Serve, servicer: Servicer, upgrade: list[str]) -> None:
    async with serve(servicer):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write("\r\n".join(["GET /x HTTP/1.1", "host: runed", *upgrade, "", ""]).encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * nonsense", b"GET /\xff HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http_gets_400(path: Path, serve: Serve, servicer: Servicer, noise: bytes) -> None:
    async with serve(servicer):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(noise + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_expect_100_is_answered(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer):
        reader, writer = await asyncio.open_unix_connection(path)
        request = head(b'{"text": "hello"}', "expect: 100-continue")
        writer.write(request[:-17])
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.1 100")
        writer.write(request[-17:])
        assert b"HTTP/1.1 200" in await asyncio.wait_for(reader.readuntil(b"200"), 3)
        writer.close()
