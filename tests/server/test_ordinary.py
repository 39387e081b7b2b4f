"""Plain requests of HTTP/1.1 go past h11. Both ways must read and write the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runed.server import Refusal
from runed.server.heads import date_header, read_head
from runed.server.http1 import MAX_HEAD
from runed.server.ordinary import read_ordinary, write_ordinary
from tests.server.conftest import Serve

PLAIN = b"POST /a HTTP/1.1\r\nHost: runed\r\nContent-Length: 5\r\n\r\nhello"

PIECES = st.sampled_from(
    b"POST|GET| |\t|/a|/a?b=c|http://x/a|*|HTTP/1.1|HTTP/1.0|\r\n|\n|\r|\0|\xff|:|Host: runed|host:x|Content-Length: 5|"
    b"content-length:0|Content-Length: +5|hello|Transfer-Encoding: chunked|Connection: close|Connection: keep-alive|"
    b"Expect: 100-continue|Upgrade: h2c|X: y| X: y|X : y|X:  y |X:|Te: trailers|x_y: z|5\r\nhello\r\n0\r\n\r\n|"
    b"POST /a HTTP/1.1\r\n".split(b"|")
)

Send = Callable[[dict[str, Any]], Awaitable[None]]


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Return a plain request with headers more, or with pieces put into it, cut off or put in place of others."""
    lines = draw(st.lists(PIECES, max_size=4))
    data = PLAIN.replace(b"\r\n\r\n", b"".join(b"\r\n" + line for line in lines) + b"\r\n\r\n")
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data = data[:start] + draw(PIECES | st.just(b"")) + data[end:]
    return data


@given(mangled())
@example(PLAIN)
@example(PLAIN.replace(b"Content", b"Connection: keep-alive\r\nX:  y \r\nContent"))
def test_what_is_read_is_what_h11_reads(data: bytes) -> None:
    ordinary = read_ordinary(data)
    if ordinary is None:
        return
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    reader.receive_data(data)
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    head = read_head(request)
    assert not isinstance(head, Refusal)
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (reader.trailing_data, reader.they_are_waiting_for_100_continue) == ((b"", False), False)
    assert (ordinary[0].method, ordinary[0].target, ordinary[0].version) == (head.method, head.target, head.version)
    assert list(ordinary[0].headers) == list(head.headers)
    assert ordinary[1] == body
    reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
    reader.send(h11.EndOfMessage())
    reader.start_next_cycle()  # fails if the connection must close


def test_plain_requests_are_ordinary() -> None:
    head, body = read_ordinary(PLAIN) or pytest.fail("it was left to h11")
    assert (head.method, head.target, head.version, body) == (b"POST", b"/a", "1.1", b"hello")
    assert head.headers == ((b"host", b"runed"), (b"content-length", b"5"))
    for other in ("Connection: keep-alive", "User-Agent: x y/1 (z; *)", "Accept: */*", "Connect-Timeout-Ms: 60000"):
        assert read_ordinary(PLAIN.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % other.encode())) is not None


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN + b"!",
        PLAIN + PLAIN,
        PLAIN.replace(b"POST", b"GET"),
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"Host: runed\r\n", b""),
        PLAIN.replace(b"Host: runed", b"Host: runed\r\nHost: runed"),
        PLAIN.replace(b"/a", b"*"),
        PLAIN.replace(b"/a", b"http://runed/a"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nX: y\r\n z\r\n\r\n"),
        PLAIN.replace(b"\r\n\r\n", b"\r\nX: %b\r\n\r\n" % (b"y" * MAX_HEAD)),
        PLAIN.replace(b": 5", b": 5, 5"),
        PLAIN.replace(b": 5", b": 0x5"),
        PLAIN.replace(b"\r\n", b"\n"),
    ],
)
def test_everything_else_is_left_to_h11(data: bytes) -> None:
    assert read_ordinary(data) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([b"content-type", b"trailer-x", b"x y", b"connection"]), st.binary(max_size=6)), max_size=3
    ),
    st.binary(max_size=20),
    st.sampled_from([0, 0, 0, 1]),
)
def test_what_is_written_is_what_h11_writes(headers: list[tuple[bytes, bytes]], body: bytes, wrong: int) -> None:
    headers = [(name, value.strip()) for name, value in headers] + [(b"content-length", b"%d" % (len(body) + wrong))]
    answer = write_ordinary(200, headers, body)
    if answer is None:
        return
    writer = h11.Connection(h11.SERVER)
    writer.receive_data(PLAIN)
    while not isinstance(writer.next_event(), h11.EndOfMessage):
        pass
    written = writer.send(h11.Response(status_code=200, headers=[*headers, date_header()])) or b""
    for event in (h11.Data(data=body), h11.EndOfMessage()):
        written += writer.send(event) or b""
    assert answer == written
    assert not wrong


async def test_both_ways_serve_one_connection_in_any_order(path: Path, serve: Serve) -> None:
    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        body = (await receive())["body"]
        headers = [] if scope["path"] == "/chunked" else [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    chunked = PLAIN.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked").replace(b"hello", b"5\r\nhello\r\n0\r\n\r\n")
    requests = [PLAIN, PLAIN.replace(b"/a", b"/chunked"), PLAIN, chunked, PLAIN, PLAIN.replace(b"POST", b"PUT"), PLAIN]
    async with serve(app):
        reader, writer = await asyncio.open_unix_connection(path)
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readuntil(b"0\r\n\r\n" if b"chunked" in head else b"hello")
        writer.write(PLAIN + PLAIN + b"\r\n" + PLAIN)
        for _ in range(3):
            await reader.readuntil(b"hello")
        writer.close()


async def test_request_that_comes_during_a_plain_one_is_answered_next(path: Path, serve: Serve) -> None:
    go_on = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        body = (await receive())["body"]
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async with serve(app):
        reader, writer = await asyncio.open_unix_connection(path)
        for text in (b"first", b"secnd"):
            writer.write(PLAIN.replace(b"hello", text))
            await writer.drain()
            await asyncio.sleep(0.05)
        go_on.set()
        assert (await reader.readuntil(b"first")).count(b"HTTP/1.1 200") == 1
        assert (await reader.readuntil(b"secnd")).count(b"HTTP/1.1 200") == 1
        writer.close()
