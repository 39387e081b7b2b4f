"""Callers that leave, cancel or run out of time: the work stops at once, and the log states the reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.api.conftest import Serve, Served
from tests.api.streams import CONTENT_TYPES, StreamClient, deadline_headers, request
from tests.fakes.fake_host import WAIT
from tests.server.clients import SERVICE, Exchange, RawClient, envelope
from tests.support import PROTOCOLS, capture_logs, eventually

EMBED = f"{SERVICE}/Embed"
REQUEST = pb.EmbedRequest(text=WAIT)
UNARY_TYPES = CONTENT_TYPES | {"connect+proto": b"application/proto", "connect+json": b"application/json"}
BODIES = {
    "grpc": envelope(REQUEST),
    "grpc-web": envelope(REQUEST),
    "connect+proto": REQUEST.SerializeToString(),
    "connect+json": MessageToJson(REQUEST).encode(),
}
DEADLINE = 150
"""Time limit of a call in milliseconds, long enough to reach the host on a busy machine."""

ENDS = {"lost": "canceled", "reset": "canceled", "deadline": "deadline_exceeded"}
"""The ends of a call, with their names in the log."""


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The log entries of the test."""
    with capture_logs() as lines:
        yield lines


async def assert_cancelled(served: Served, log: list[Any], method: str, code: str) -> None:
    await eventually(lambda: served.host.busy == 0 and served.host.cancelled == 1)
    await eventually(lambda: any(line["event"] == "embedding call" for line in log))
    [line] = (line for line in log if line["event"] == "embedding call")
    assert (line["method"], line["code"], line["texts"]) == (method, code, 1)
    assert not [line for line in log if line["log_level"] == "error"]


async def end_http2(client: RawClient, stream_id: int, how: str) -> None:
    match how:
        case "lost":
            client.writer.transport.abort()
        case "reset":
            client.h2.reset_stream(stream_id, 8)
            await client.flush()


def is_deadline_exceeded(exchange: Exchange) -> bool:
    """Return whether a response of any protocol is DEADLINE_EXCEEDED."""
    if exchange.headers[b":status"] == b"504":
        return json.loads(exchange.body)["code"] == "deadline_exceeded"  # type: ignore[no-any-return] # a string
    return exchange.headers.get(b"grpc-status") == b"4" or b"grpc-status: 4" in exchange.body


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_call_over_http2(protocol: str, how: str, served: Served, log: list[Any]) -> None:
    headers = deadline_headers(protocol, DEADLINE) if how == "deadline" else {}
    async with await RawClient.connect(served.path) as client:
        stream_id = client.open(EMBED.encode(), BODIES[protocol], headers={b"content-type": UNARY_TYPES[protocol]} | headers)
        await client.flush()
        await eventually(lambda: served.host.waiting == 1)
        await end_http2(client, stream_id, how)
        await assert_cancelled(served, log, "Embed", ENDS[how])
        if how == "deadline":
            assert is_deadline_exceeded(await client.over(stream_id))


@pytest.mark.parametrize("how", ["lost", "deadline"])
@pytest.mark.parametrize("protocol", ["connect+proto", "connect+json", "grpc-web"])
async def test_call_over_http1(protocol: str, how: str, served: Served, log: list[Any]) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    headers = deadline_headers(protocol, DEADLINE) if how == "deadline" else {}
    headers |= {
        b"host": b"runed",
        b"content-type": UNARY_TYPES[protocol],
        b"content-length": str(len(BODIES[protocol])).encode(),
    }
    head = b"\r\n".join([f"POST {EMBED} HTTP/1.1".encode(), *(b"%b: %b" % item for item in headers.items()), b"", b""])
    writer.write(head + BODIES[protocol])
    await eventually(lambda: served.host.waiting == 1)
    if how == "lost":
        writer.close()
    await assert_cancelled(served, log, "Embed", ENDS[how])
    if how == "deadline":
        assert (await asyncio.wait_for(reader.readline(), 3)).split()[1] == (b"200" if protocol == "grpc-web" else b"504")
        writer.close()


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_stream(protocol: str, how: str, half_closed: bool, served: Served, log: list[Any]) -> None:  # noqa: FBT001 # pytest passes it by name
    headers = deadline_headers(protocol, DEADLINE) if how == "deadline" else {}
    async with await StreamClient.open(served.path, protocol, headers=headers) as stream:
        await stream.send(request(WAIT), end=half_closed)
        await eventually(lambda: served.host.waiting == 1)
        await end_http2(stream.client, stream.stream_id, how)
        await assert_cancelled(served, log, "EmbedStream", ENDS[how])
        if how == "deadline":
            refusal = await stream.outcome()
            assert refusal is not None
            assert (refusal.code, refusal.reason) == ("deadline_exceeded", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("how", ["lost", "reset"])
async def test_stream_that_is_held_back_unread(how: str, served: Served, log: list[Any]) -> None:
    async with await StreamClient.open(served.path) as stream:
        await stream.send(request(WAIT))
        await eventually(lambda: served.host.waiting == 1)
        await stream.send(*(request("x" * 1000) for _ in range(20)))
        await end_http2(stream.client, stream.stream_id, how)
        await assert_cancelled(served, log, "EmbedStream", "canceled")


async def test_stream_whose_client_is_silent(served: Served, log: list[Any]) -> None:
    async with await StreamClient.open(served.path) as stream:
        await stream.send(request("one"))
        await stream.results(1)
        await end_http2(stream.client, stream.stream_id, "reset")
        await assert_cancelled(served, log, "EmbedStream", "canceled")


async def test_stream_whose_results_wait_for_the_client(served: Served, log: list[Any]) -> None:
    async with await StreamClient.open(served.path, settings={4: 10}, takes_bodies=False) as stream:
        await stream.send(request("one"))
        await eventually(lambda: served.host.taken == 1)
        await end_http2(stream.client, stream.stream_id, "reset")
        await assert_cancelled(served, log, "EmbedStream", "canceled")


async def test_shutdown_that_does_not_wait_cancels_all(serve: Serve, log: list[Any]) -> None:
    async with serve() as served, await StreamClient.open(served.path) as stream:
        await stream.send(request(WAIT))
        await eventually(lambda: served.host.waiting == 1)
        await served.server.stop(0)
        await assert_cancelled(served, log, "EmbedStream", "canceled")


async def test_log_line_counts_what_a_stream_did_and_quotes_nothing(served: Served, log: list[Any]) -> None:
    async with await StreamClient.open(served.path) as stream:
        await stream.send(
            request("secret one", "cached secret", "", lane=pb.LANE_BULK, role=pb.ROLE_QUERY, instruction="secret")
        )
        await stream.send(request("secret " * 20, "cached two"), end=True)
        await stream.outcome()
    [line] = (line for line in log if line["event"] == "embedding call")
    counts = {key: line[key] for key in ("method", "lane", "texts", "tokens", "hits", "truncated", "refused", "code")}
    assert counts == {
        "method": "EmbedStream",
        "lane": "bulk",
        "texts": 5,
        "tokens": 12,
        "hits": 2,
        "truncated": 0,
        "refused": 2,
        "code": "ok",
    }
    assert "secret" not in json.dumps(log)
