"""Defects of Hypercorn 0.18.0 under gRPC load. Each test fails on stock Hypercorn, strictly, and passes on our server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import grpc
import psutil
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.server.app import IGNORE, WAIT
from tests.server.clients import SERVICE, GrpcClient, RawClient, envelope
from tests.server.conftest import Run
from tests.support import wait_until

SET_CENTROIDS = f"{SERVICE}/SetCentroids".encode()


def fails_on_stock(reason: str) -> Callable[..., Any]:
    """Run a test against both servers. It must fail on stock Hypercorn by an assertion, for the given reason."""
    fails = pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)
    stock = pytest.param("stock", marks=[fails, pytest.mark.slow])
    return pytest.mark.parametrize("kind", [stock, "ours"])


async def until_waiting(observer: GrpcClient, number: int) -> None:
    """Return when `count` calls wait, or after one second."""
    for _ in range(50):
        health = json.loads((await observer.health(pb.HealthRequest(), timeout=5)).message)
        if health["waiting"] >= number:
            return
        await asyncio.sleep(0.02)


async def release(path: Path, *, waiting: int) -> None:
    """Let the waiting calls go on when `count` of them wait. A server that lost them has none."""
    async with GrpcClient(path) as other:
        await until_waiting(other, waiting)
        await other.release(pb.ShutdownRequest(), timeout=5)


@fails_on_stock("1: KeyError on DATA for a stream already answered kills the connection")
async def test_body_after_the_answer_does_not_kill_other_calls(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        unknown = client.open(b"/no.such.Service/Method", end=False)
        assert (await client.over(unknown)).ended
        await client.put(DataFrame(unknown, b"\0" * 1000))
        await release(path, waiting=1)
        assert (await client.over(in_flight)).succeeded


@fails_on_stock("2: the reader blocks on the full queue of a handler that does not read")
async def test_handler_that_does_not_read_freezes_nobody(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        header = pb.SetCentroidsRequest(header=pb.CentroidSetHeader(preset=IGNORE))
        lazy = client.open(SET_CENTROIDS, envelope(header), end=False)
        await client.flush()
        async with GrpcClient(path) as other:
            await until_waiting(other, 1)
        for _ in range(50):
            client.h2.send_data(lazy, envelope(pb.SetCentroidsRequest(batch=pb.CentroidBatch())))
            await client.flush()
            await asyncio.sleep(0.001)  # so that each frame is one item of the queue
        quick = client.call("Embed", pb.EmbedRequest(text="hello"))
        assert (await client.over(quick, within=20)).succeeded


@pytest.mark.slow
@fails_on_stock("3: finished streams starve in the priority tree until TooManyStreamsError kills the connection")
async def test_thousands_of_concurrent_calls_on_one_connection(kind: str, path: Path, run: Run) -> None:
    run(kind)
    failures = 0
    async with GrpcClient(path) as client:
        calls = iter(range(3000))

        async def worker() -> None:
            nonlocal failures
            for _ in calls:
                failures += await client.embed(pb.EmbedRequest(text="hello"), timeout=5).code() is not grpc.StatusCode.OK
                if failures:
                    return

        await asyncio.gather(*(worker() for _ in range(64)))
    assert failures == 0


@pytest.mark.slow
@fails_on_stock("4: keep_alive_max_requests closes the connection under calls in flight")
async def test_no_number_of_calls_ends_a_connection(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        for _ in range(1100):
            assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        await release(path, waiting=1)
        assert (await client.over(in_flight)).succeeded


@pytest.mark.slow
@fails_on_stock("4: keep_alive_max_requests counts on HTTP/1.1 as well")
def test_no_number_of_requests_ends_a_keep_alive_connection(kind: str, path: Path, run: Run) -> None:
    run(kind)
    client = http.client.HTTPConnection("localhost")
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.connect(str(path))
    for _ in range(1100):
        client.request("POST", f"{SERVICE}/Info", "{}", {"content-type": "application/json"})
        response = client.getresponse()
        assert response.status == 200
        response.read()
        assert not response.will_close
    client.close()


@fails_on_stock("5: neither descriptors nor tasks of a lost connection are released")
async def test_lost_connections_leave_nothing_behind(kind: str, path: Path, run: Run) -> None:
    process = psutil.Process(run(kind).pid)
    async with GrpcClient(path) as observer:

        async def held() -> tuple[int, int]:
            health = json.loads((await observer.health(pb.HealthRequest(), timeout=5)).message)
            return process.num_fds(), health["tasks"]

        baseline = await held()
        for _ in range(5):
            settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 1000}
            async with await RawClient.connect(path, settings=settings, takes_bodies=False) as client:
                large = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 64))
                client.open(SET_CENTROIDS, b"\0", end=False)
                assert await client.until(lambda: len(client.exchanges[large].body) == 1000)  # noqa: B023 # awaited right here
        now = await held()
        for _ in range(100):
            if now <= baseline:
                break
            await asyncio.sleep(0.02)
            now = await held()
        assert now <= baseline


@fails_on_stock("5: a closed idle connection keeps its descriptor for keep_alive_timeout")
async def test_closed_idle_connection_frees_its_descriptor_at_once(kind: str, path: Path, run: Run) -> None:
    process = psutil.Process(run(kind).pid)
    async with await RawClient.connect(path) as client:
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        connected = process.num_fds()
    wait_until(lambda: process.num_fds() < connected, timeout=2, what="the descriptor's end")


@fails_on_stock("6: no GOAWAY, and later requests are reset with NO_ERROR, which means success")
async def test_drain_says_so_and_refuses_what_comes_later(kind: str, path: Path, run: Run) -> None:
    process = run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        process.send_signal(signal.SIGTERM)
        assert await client.until(lambda: client.goaway is not None, within=20)
        assert client.goaway is not None
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (ErrorCodes.NO_ERROR, in_flight + 2)
        late = client.call("Info", pb.InfoRequest())
        assert (await client.over(late)).reset == ErrorCodes.REFUSED_STREAM
        client.h2.reset_stream(in_flight, ErrorCodes.CANCEL)
        await client.flush()
    assert process.wait(timeout=5) == 0


@fails_on_stock("1 and 6: the body of a request refused in a drain kills the calls in flight")
async def test_request_during_a_drain_does_not_kill_calls_in_flight(kind: str, path: Path, run: Run) -> None:
    process = run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.open(SET_CENTROIDS, envelope(pb.SetCentroidsRequest()), end=False)
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        process.send_signal(signal.SIGTERM)
        await client.until(lambda: client.goaway is not None, within=0.5)
        late = client.call("Info", pb.InfoRequest())
        assert (await client.over(late)).reset is not None
        client.h2.send_data(in_flight, envelope(pb.SetCentroidsRequest()), end_stream=True)
        assert (await client.over(in_flight)).succeeded
    assert process.wait(timeout=5) == 0


def replaced(path: Path, before: os.stat_result) -> bool:
    """Return whether another file is at the path now. Between the two files, nothing is there for a moment."""
    try:
        return os.lstat(path) != before
    except FileNotFoundError:
        return False


@fails_on_stock("7: a `unix:` bind replaces a live socket, with another mode, and leaves the file behind")
def test_socket_path_of_a_live_daemon_is_left_alone(kind: str, path: Path, run: Run) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        path.chmod(stat.S_IFSOCK | 0o600)
        before = os.lstat(path)
        process: Popen[bytes] = run(kind)
        if kind == "ours":  # our server does not bind, so the test's program finds the path taken
            process.wait(timeout=10)
        else:
            wait_until(lambda: replaced(path, before) or process.poll() is not None, timeout=10)
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@fails_on_stock("8: a path that is not ASCII is a connection error")
async def test_path_that_is_not_ascii_fails_alone(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        strange = client.open("/é".encode())
        assert (await client.over(strange)).reset == ErrorCodes.PROTOCOL_ERROR
        await release(path, waiting=1)
        assert (await client.over(in_flight)).succeeded


@fails_on_stock("8: one stream more than allowed is a connection error")
async def test_one_stream_too_many_is_refused_alone(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        # All in one write, before the server's limit is known, as a client that has just connected may do.
        calls = [client.call("Embed", pb.EmbedRequest(text=WAIT)) for _ in range(200)]
        assert await client.until(lambda: sum(e.reset == ErrorCodes.REFUSED_STREAM for e in client.exchanges.values()) == 72)
        await release(path, waiting=128)
        for call in calls[:128]:
            assert (await client.over(call)).succeeded


@fails_on_stock("8: a client's GOAWAY, which only says that it opens nothing new, drops its calls")
async def test_goaway_of_the_client_does_not_drop_its_calls(kind: str, path: Path, run: Run) -> None:
    run(kind)
    async with await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        await client.put(GoAwayFrame())
        await release(path, waiting=1)
        assert (await client.over(in_flight)).succeeded
