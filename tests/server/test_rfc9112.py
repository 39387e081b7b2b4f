"""What RFC 9112 demands of a server at the edges: empty lines, targets, versions, lengths and headers that do not matter."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.server.conftest import Serve
from tests.support import eventually

HOST = b"Host: runed\r\n"


async def echo(scope: dict[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]) -> None:
    """Answer what the app sees of a request."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    seen = {
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "method": scope["method"],
        "hosts": [value.decode() for name, value in scope["headers"] if name == b"host"],
        "body": body.decode(),
    }
    answer = msgspec.json.encode(seen)
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def exchange(path: Path, data: bytes) -> bytes:
    """Send bytes, and return everything that comes until the server closes or 0.3 s are silent."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    answer = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 0.3):
            answer += part
    except TimeoutError:
        pass
    writer.transport.abort()
    return answer


def seen(answer: bytes) -> dict[str, Any]:
    assert answer.startswith(b"HTTP/1.1 200"), answer
    document: dict[str, Any] = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    return document


def get(target: bytes = b"/a?b", version: bytes = b"HTTP/1.1", headers: bytes = HOST, method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" " + version + b"\r\n" + headers + b"\r\n"


SERVED = {
    "an empty line before the request": (b"\r\n" + get(), {}),
    "many empty lines before the request": (b"\r\n\n\r\n" + get(), {}),
    "an absolute target": (get(b"http://other:8080/a?b"), {"hosts": ["other:8080"]}),
    "an absolute target without a path": (get(b"HTTP://other"), {"path": "/", "query": "", "hosts": ["other"]}),
    "an absolute target with a query alone": (get(b"http://other?b"), {"path": "/", "hosts": ["other"]}),
    "a Latin-1 header of no interest": (get(headers=HOST + b"X-Name: Ren\xe9\r\n"), {}),
    "a later minor version": (get(version=b"HTTP/1.9"), {}),
    "an earlier minor version without a host": (get(version=b"HTTP/1.0", headers=b""), {"hosts": []}),
    "a folded header": (get(headers=HOST + b"X-Long: a\r\n b\r\n"), {}),
    "bare line feeds": (b"GET /a?b HTTP/1.1\nHost: runed\n\n", {}),
    "an unknown method": (get(method=b"BREW"), {"method": "BREW"}),
    "chunk extensions and trailers": (
        get(method=b"POST", headers=HOST + b"Transfer-Encoding: chunked\r\n")
        + b'3;name=value;other="x"\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n',
        {"method": "POST", "body": "abcd"},
    ),
    "the same length twice": (
        get(method=b"POST", headers=HOST + b"Content-Length: 2\r\nContent-Length: 2\r\n") + b"ab",
        {"method": "POST", "body": "ab"},
    ),
    "an unknown expectation": (get(headers=HOST + b"Expect: wonders\r\n"), {}),
}

REFUSED = {
    "another major version": (get(version=b"HTTP/9.9"), 505),
    "another major version without a host": (get(version=b"HTTP/9.9", headers=b""), 505),
    "HTTP/2 without its preface": (get(version=b"HTTP/2.0"), 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "no host": (get(headers=b""), 400),
    "no host in a later minor version": (get(version=b"HTTP/1.2", headers=b""), 400),
    "two hosts": (get(headers=HOST + HOST), 400),
    "two lengths": (get(method=b"POST", headers=HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n") + b"ab", 400),
    "a signed length": (get(method=b"POST", headers=HOST + b"Content-Length: +1\r\n") + b"a", 400),
    "a length and an encoding": (
        get(method=b"POST", headers=HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        400,
    ),
    "an encoding in HTTP/1.0": (
        get(version=b"HTTP/1.0", method=b"POST", headers=HOST + b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        400,
    ),
    "an unknown encoding": (get(method=b"POST", headers=HOST + b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    "a tunnel": (get(b"runed:443", method=b"CONNECT"), 501),
    "a relative target": (get(b"a"), 400),
    "an asterisk without OPTIONS": (get(b"*"), 400),
    "a target of another scheme": (get(b"ftp://runed/a"), 400),
    "a space before the colon": (get(headers=HOST + b"X : a\r\n"), 400),
    "a bare carriage return": (get(headers=HOST + b"X: a\rb\r\n"), 400),
    "a header too long": (get(headers=HOST + b"X: " + b"a" * 100_000 + b"\r\n"), 431),
    "a chunk of bad size": (get(method=b"POST", headers=HOST + b"Transfer-Encoding: chunked\r\n") + b"x\r\n", 400),
    "the greeting of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
}


@pytest.mark.parametrize(("data", "expected"), SERVED.values(), ids=SERVED)
async def test_request_is_served(path: Path, serve: Serve, data: bytes, expected: dict[str, Any]) -> None:
    usual = {"path": "/a", "query": "b", "method": "GET", "hosts": ["runed"], "body": ""}
    async with serve(echo):
        assert seen(await exchange(path, data)) == usual | {"query": seen_query(data)} | expected


def seen_query(data: bytes) -> str:
    return "b" if b"?b" in data else ""


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
async def test_request_is_refused_and_the_connection_closed(path: Path, serve: Serve, data: bytes, status: int) -> None:
    async with serve(echo) as server:
        answer = await exchange(path, data + get())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d" % status), answer
        assert b"connection: close" in head.lower()
        assert len(body) > 20  # says why
        assert b"HTTP/1.1 200" not in body
        await eventually(lambda: not server._connections)


async def test_empty_lines_between_pipelined_requests_mean_nothing(path: Path, serve: Serve) -> None:
    post = get(method=b"POST", headers=HOST + b"Content-Length: 1\r\n") + b"x"
    async with serve(echo):
        assert (await exchange(path, post + b"\r\n" + post + b"\r\n\r\n" + get())).count(b"HTTP/1.1 200") == 3
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(3):  # also byte by byte, on a kept connection
            for byte in b"\r\n" + get():
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await asyncio.wait_for(reader.readuntil(b"}"), 3)).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("rest", [b"\r\n", get(), b"!", bytes(100_000)], ids=["an empty line", "a request", "noise", "much"])
@pytest.mark.parametrize(
    "version",
    [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.1\r\nConnection: x, Close", b"HTTP/1.0"],
    ids=["close", "Close", "1.0"],
)
async def test_what_follows_the_last_request_does_not_take_its_answer(
    path: Path, serve: Serve, version: bytes, rest: bytes
) -> None:
    post = get(method=b"POST", version=version, headers=HOST + b"Content-Length: 1\r\n") + b"x"
    async with serve(echo) as server:
        for data in (post + rest, b"\r\n" + post + rest):
            answer = await exchange(path, data)
            assert seen(answer)["body"] == "x"
            assert answer.count(b"HTTP/1.1 ") == 1
        await eventually(lambda: not server._connections)


async def pieces(path: Path, parts: list[bytes]) -> bytes:
    """Send bytes in parts and end the input. Return all answers without their dates."""
    loop = asyncio.get_running_loop()
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        with suppress(OSError):  # the server has closed before
            for part in parts:
                await loop.sock_sendall(sock, part)
                for _ in range(10):  # until the server has read it
                    await asyncio.sleep(0)
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # the server has left bytes unread
            while part := await asyncio.wait_for(loop.sock_recv(sock, 65536), 20):
                answer += part
    return re.sub(rb"date: [^\r]*\r\n", b"", answer, flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("headers", "body", "statuses"),
    [
        (b"Content-Length: 5\r\n", b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n", [200, 400]),
        (b"Content-Length: 5\r\n", b"hello\r\n" + get(), [200, 200]),
        (b"Content-Length: 5\r\nConnection: close\r\n", b"hello" + get(), [200]),
        (b"Transfer-Encoding: chunked\r\n", b"5;a=b\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n" + get(), [200, 200]),
        (b"Content-Length: 5\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", b"hello" + get(), [200, 200]),
    ],
    ids=["a request for a body", "a pipeline", "bytes after the last request", "chunks", "an upgrade"],
)
async def test_answers_do_not_depend_on_where_the_bytes_are_cut(
    path: Path, serve: Serve, headers: bytes, body: bytes, statuses: list[int]
) -> None:
    data = get(method=b"POST", headers=HOST + headers) + body
    async with serve(echo):
        whole = await pieces(path, [data])
        assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", whole)] == statuses
        for cut in range(1, len(data)):
            assert await pieces(path, [data[:cut], data[cut:]]) == whole, data[:cut]
        assert await pieces(path, [bytes([byte]) for byte in data]) == whole


async def test_options_of_the_whole_server(path: Path, serve: Serve) -> None:
    async with serve(echo):
        for target in (b"*", b"http://runed"):
            answer = await exchange(path, get(target, method=b"OPTIONS"))
            assert answer.startswith(b"HTTP/1.1 204")
            assert b"allow: GET, HEAD, OPTIONS, POST" in answer


async def test_answer_to_head_has_no_body(path: Path, serve: Serve) -> None:
    async with serve(echo):
        answer = await exchange(path, get(method=b"HEAD") + get())
        assert answer.count(b"HTTP/1.1 200") == 2
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"content-length" in head.lower()
        assert rest.startswith(b"HTTP/1.1 200")
        assert (await exchange(path, get(version=b"HTTP/9.9", method=b"HEAD"))).endswith(b"\r\n\r\n")
