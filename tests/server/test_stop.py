"""Accepting, draining and stopping lose nothing in flight, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.rpc.refusals import Receive, Scope, Send
from runed.server import Server, http2
from runed.server.serving import LATE_GRACE
from tests.server.app import WAIT, Servicer, build_app
from tests.server.clients import SERVICE, GrpcClient, RawClient, stop_reading
from tests.server.conftest import Serve
from tests.server.test_http1 import EMBED, client_for
from tests.support import eventually


async def test_every_call_in_flight_survives_a_drain(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, client_for(path) as http1, GrpcClient(path) as http2:
        calls = [http2.embed(pb.EmbedRequest(text=WAIT), timeout=20) for _ in range(64)]
        posts = [asyncio.create_task(http1.post(EMBED, json={"text": WAIT})) for _ in range(16)]
        await eventually(lambda: servicer.waiting == 80)
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0.1)
        assert await http2.embed(pb.EmbedRequest(text="late"), timeout=5).code() is grpc.StatusCode.OK, "on a new connection"
        late = await http1.post(EMBED, json={"text": "late"})
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert not stopping.done()
        servicer.let_go()
        assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
        responses = await asyncio.gather(*posts)
        assert {(response.status_code, response.headers["connection"]) for response in responses} == {(200, "close")}
        await asyncio.wait_for(stopping, 20)
        with pytest.raises(httpx.ConnectError):
            await http1.post(EMBED, json={"text": "too late"})


async def test_what_came_during_a_drain_does_not_make_it_longer(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, GrpcClient(path) as client:
        call = client.embed(pb.EmbedRequest(text=WAIT), timeout=20)
        await eventually(lambda: servicer.waiting == 1)
        stopping = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0)
        silent = await asyncio.open_unix_connection(path)
        stalled = await asyncio.open_unix_connection(path)
        head = f"POST {SERVICE}/Embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        stalled[1].write(head.encode())
        await eventually(lambda: len(server._connections) == 3 and sum(not c.idle for c in server._connections.values()) == 2)
        servicer.let_go()
        assert await call.code() is grpc.StatusCode.OK
        assert await silent[0].read() == b""
        assert not stopping.done(), "what has begun has a moment to end"
        await asyncio.wait_for(stopping, LATE_GRACE + 10)
        assert await stalled[0].read() == b""
        for _, writer in (silent, stalled):
            writer.close()


async def test_large_answer_under_way_survives_a_drain(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, await RawClient.connect(path) as client:
        large = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 2048))
        assert await client.until(lambda: len(client.exchanges[large].body) > 0)
        stopping = asyncio.create_task(server.stop(10))
        assert (await client.over(large, within=10)).succeeded
        await client.until(lambda: client.ended)
        assert client.goaway is not None
        assert client.goaway.error_code == ErrorCodes.NO_ERROR
        await asyncio.wait_for(stopping, 20)


@pytest.mark.parametrize("ends", [True, False], ids=["a client that ends its request", "one that never does"])
async def test_client_that_still_sends_has_a_moment_to_read_its_last_answer(
    path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    if ends:  # so long that the end of the wait is told from that of the request
        monkeypatch.setattr(http2, "DRAIN_LINGER_SECONDS", 60)
    answering = asyncio.Event()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await answering.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async with serve(app) as server, await RawClient.connect(path) as client:
        stream = client.open(b"/", end=False)
        await client.flush()
        await eventually(lambda: any(not connection.idle for connection in server._connections.values()))
        stopping = asyncio.create_task(server.stop(10))
        answering.set()
        assert (await client.over(stream)).ended
        assert not await client.until(lambda: client.ended, within=0.25)
        assert not stopping.done()
        if ends:
            client.h2.end_stream(stream)
        assert await client.until(lambda: client.ended, within=20)
        await asyncio.wait_for(stopping, 20)


async def test_idle_connections_do_not_delay_a_stop(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, client_for(path) as http1, GrpcClient(path) as http2:
        await http1.post(EMBED, json={"text": "hello"})
        await http2.embed(pb.EmbedRequest(text="hello"))
        silent, writer = await asyncio.open_unix_connection(path)
        await eventually(lambda: len(server._connections) == 3)
        await asyncio.wait_for(server.stop(60), 20)
        assert await silent.read() == b""
        writer.close()


async def test_grace_is_honoured_and_then_the_rest_is_cancelled(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, GrpcClient(path) as client:
        call = client.embed(pb.EmbedRequest(text=WAIT), timeout=20)
        await eventually(lambda: servicer.waiting == 1)
        begun = time.monotonic()
        await server.stop(0.5)
        assert 0.4 < time.monotonic() - begun < 10
        assert servicer.cancelled == 1
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await server.stop(0.5)


async def test_second_stop_shortens_the_first(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, GrpcClient(path) as client:
        call = client.embed(pb.EmbedRequest(text=WAIT), timeout=20)
        await eventually(lambda: servicer.waiting == 1)
        patient = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0)
        await asyncio.wait_for(server.stop(0), 20)
        await asyncio.wait_for(patient, 20)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_client_that_takes_nothing_does_not_delay_a_stop(path: Path, serve: Serve, servicer: Servicer) -> None:
    settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 2**30}
    async with serve(servicer) as server, await RawClient.connect(path, settings=settings) as client:
        client.h2.increment_flow_control_window(2**30)
        call = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 2048))
        assert await client.until(lambda: len(client.exchanges[call].body) > 0)
        stop_reading(client.writer)
        await asyncio.wait_for(server.stop(0.1), 20)


async def test_the_path_is_left_as_it_was(path: Path, sock: socket.socket, servicer: Servicer) -> None:
    before = os.lstat(path)
    server = Server(build_app(servicer), sock)
    await server.start()
    await server.stop(0)
    assert sock.fileno() == -1
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


async def test_stop_frees_every_descriptor(path: Path, serve: Serve, servicer: Servicer) -> None:
    process = psutil.Process()
    baseline = process.num_fds()
    async with serve(servicer) as server:
        clients = [await RawClient.connect(path) for _ in range(5)]
        for client in clients:
            client.call("Embed", pb.EmbedRequest(text=WAIT))
            await client.flush()
        await eventually(lambda: servicer.waiting == 5)
        await server.stop(0)
        for client in clients:
            await client.__aexit__()
        await eventually(lambda: process.num_fds() <= baseline)


async def test_forgotten_connections_do_not_lock_others_out(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_connections=4) as server, GrpcClient(path) as busy:
        call = busy.embed(pb.EmbedRequest(text=WAIT), timeout=20)
        await eventually(lambda: servicer.waiting == 1)
        forgotten = [await asyncio.open_unix_connection(path) for _ in range(20)]
        async with client_for(path) as client:
            assert (await client.post(EMBED, json={"text": "hello"})).status_code == 200
        assert len(server._connections) <= 5
        servicer.let_go()
        assert await call.code() is grpc.StatusCode.OK
        for _, writer in forgotten:
            writer.close()
