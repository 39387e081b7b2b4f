"""Bytes that are no request: they get an error of the caller's protocol with our reason, and the daemon goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
from collections.abc import Iterator

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.api.streams import CONTENT_TYPES, StreamClient
from tests.server.clients import SERVICE, RawClient
from tests.support import Refusal, RunningDaemon, refusal_of_json, refusal_of_trailers

TOO_LARGE = 32 * 1024 * 1024 + 1
MESSAGE = pb.EmbedRequest(text="some text").SerializeToString()


@pytest.fixture(autouse=True)
def daemon_works_on(qwen_daemon: RunningDaemon) -> Iterator[None]:
    """After each test, check that the daemon embeds, has nothing in flight and logs no fault of its own."""
    logged = qwen_daemon.log_path.stat().st_size
    yield
    with qwen_daemon.http() as http:
        embedded = http.post(f"{SERVICE}/Embed", json={"text": "still there"})
        health = http.post(f"{SERVICE}/Health", json={})
    assert len(embedded.json()["vector"]) == 64
    assert health.json().get("inFlightRequests", "0") == "0"
    news = qwen_daemon.log()[logged:]
    assert "request failed" not in news
    assert "call failed unexpectedly" not in news


def envelope(payload: bytes, *, flags: int = 0, length: int | None = None) -> bytes:
    """Return a message in its envelope, possibly with wrong flags and a wrong length."""
    return struct.pack(">BI", flags, len(payload) if length is None else length) + payload


# JSON of the wrong shape

WRONG_SHAPES: dict[str, tuple[str, bytes]] = {
    "nothing": ("Embed", b""),
    "null": ("Embed", b"null"),
    "array": ("Embed", b'[{"text": "x"}]'),
    "string": ("Embed", b'"secret-4711"'),
    "number": ("Embed", b"7"),
    "list for a text": ("Embed", b'{"text": ["secret-4711"]}'),
    "object for a text": ("Embed", b'{"text": {"secret-4711": 1}}'),
    "text for a list": ("EmbedBatch", b'{"texts": "secret-4711"}'),
    "number in a list": ("EmbedBatch", b'{"texts": ["secret-4711", 7]}'),
    "null in a list": ("EmbedBatch", b'{"texts": ["secret-4711", null]}'),
    "the same field twice": ("Embed", b'{"text": "secret-4711", "text": "secret-4711"}'),
    "negative dimensions": ("Embed", b'{"text": "secret-4711", "dimensions": -1}'),
    "dimensions beyond 32 bits": ("Embed", b'{"text": "secret-4711", "dimensions": 4294967296}'),
    "half a dimension": ("Embed", b'{"text": "secret-4711", "dimensions": 32.5}'),
    "infinite dimensions": ("Embed", b'{"text": "secret-4711", "dimensions": 1e999}'),
    "an infinite number of an enum": ("EmbedBatch", b'{"texts": ["secret-4711"], "truncate": -1e999}'),
    "dimensions in words": ("Embed", b'{"text": "secret-4711", "dimensions": "secret-4711"}'),
    "NaN": ("Embed", b'{"text": "secret-4711", "dimensions": NaN}'),
    "text for a truth value": ("EmbedBatch", b'{"texts": ["x"], "perItemErrors": "secret-4711"}'),
    "list for an enum": ("Embed", b'{"text": "secret-4711", "role": ["ROLE_QUERY"]}'),
    "two documents": ("Embed", b'{"text": "secret-4711"}{"text": "secret-4711"}'),
    "comment": ("Embed", b'{"text": "secret-4711"} // secret-4711'),
    "UTF-16": ("Embed", '{"text": "secret-4711"}'.encode("utf-16")),
    "nested without end": ("Embed", b'{"unknown": ' + b"[" * 100_000),
    "deeply nested": ("Embed", b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_json_of_the_wrong_shape(case: str, qwen_daemon: RunningDaemon) -> None:
    method, body = WRONG_SHAPES[case]
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/{method}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")
    assert "secret-4711" not in refusal.message


def malformed(daemon: RunningDaemon, method: str, body: bytes) -> Refusal:
    """Return the refusal of JSON that cannot be read."""
    with daemon.http() as http:
        response = http.post(f"{SERVICE}/{method}", content=body, headers={"content-type": "application/json"})
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == MALFORMED
    return refusal


@pytest.mark.parametrize(
    ("method", "body", "accepted"),
    [
        ("Embed", b'{"text": "x", "dimensions": -1}', "a whole number from 0 to 4294967295"),
        ("Embed", b'{"text": "x", "dimensions": "' + b"9" * 10_000 + b'"}', "a whole number from 0 to 4294967295"),
        ("Rerank", b'{"query": "x", "topN": 1e999}', "a whole number from 0 to 4294967295"),
        ("Shutdown", b'{"graceSeconds": 2147483648}', "a whole number from -2147483648 to 2147483647"),
        ("EmbedBatch", b'{"texts": "x"}', "a list, each item being a string"),
        ("EmbedBatch", b'{"texts": ["x"], "perItemErrors": 1}', "true or false"),
        ("Embed", b'{"text": 1}', "a string"),
    ],
)
def test_json_of_another_type_is_told_what_is_accepted(
    method: str, body: bytes, accepted: str, qwen_daemon: RunningDaemon
) -> None:
    refusal = malformed(qwen_daemon, method, body)
    assert refusal.message.endswith(f"; accepted is {accepted}")
    assert len(refusal.message) < 300


@pytest.mark.parametrize(
    ("method", "body", "lacking"),
    [
        ("Embed", b'{"txt": "secret-4711"}', "text"),
        ("EmbedBatch", b'{"text": ["secret-4711"]}', "texts"),
        ("CountTokens", b'{"input": ["secret-4711"]}', "texts"),
        ("Rerank", b'{"query": "x", "texts": ["secret-4711"]}', "documents"),
    ],
)
def test_a_misspelt_field_of_texts_is_told_with_the_right_ones(
    method: str, body: bytes, lacking: str, qwen_daemon: RunningDaemon
) -> None:
    refusal = malformed(qwen_daemon, method, body)
    assert f"has no field {lacking}, and one that is unknown; {method}Request has the fields " in refusal.message
    assert "secret-4711" not in refusal.message


def test_unknown_json_fields_are_those_of_a_newer_client(qwen_daemon: RunningDaemon) -> None:
    plain = qwen_daemon.call("Embed", {"text": "with more fields"})
    more = {"text": "with more fields", "ofTomorrow": {"role": ["ROLE_QUERY"]}, "texts": ["x"], "with_route": False}
    assert qwen_daemon.call("Embed", more)["vector"] == plain["vector"]


# Connect without streams: headers and queries

BAD_HEADERS: dict[str, tuple[dict[str, str], bytes, str, str]] = {
    "other version": ({"connect-protocol-version": "2"}, MESSAGE, "invalid_argument", "MALFORMED_REQUEST"),
    "deadline in words": ({"connect-timeout-ms": "soon"}, MESSAGE, "invalid_argument", "MALFORMED_REQUEST"),
    "negative deadline": ({"connect-timeout-ms": "-1"}, MESSAGE, "invalid_argument", "MALFORMED_REQUEST"),
    "deadline of eleven digits": ({"connect-timeout-ms": "10000000000"}, MESSAGE, "invalid_argument", "MALFORMED_REQUEST"),
    "unknown compression": ({"content-encoding": "br"}, MESSAGE, "unimplemented", "UNIMPLEMENTED"),
    "no gzip": ({"content-encoding": "gzip"}, MESSAGE, "invalid_argument", "MALFORMED_REQUEST"),
    "cut gzip": ({"content-encoding": "gzip"}, gzip.compress(MESSAGE)[:-9], "invalid_argument", "MALFORMED_REQUEST"),
    "gzip of nonsense": ({"content-encoding": "gzip"}, gzip.compress(b"\xff\xff"), "invalid_argument", "MALFORMED_REQUEST"),
    "gzip bomb": ({"content-encoding": "gzip"}, gzip.compress(bytes(TOO_LARGE)), "resource_exhausted", "REQUEST_TOO_LARGE"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_over_connect(case: str, qwen_daemon: RunningDaemon) -> None:
    headers, body, code, reason = BAD_HEADERS[case]
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=body, headers={"content-type": "application/proto"} | headers)
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == (code, reason)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_another_http_method_is_told_to_send_a_post_with_json(method: str, qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.request(method, f"{SERVICE}/Health")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    assert "send a POST with JSON, as `curl -H 'Content-Type: application/json' -d '{}'` does" in response.text


def test_an_unknown_path_names_all_that_are_there(qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.get("/healthz")
        assert response.status_code == 404
        for path in ("/health", "/metrics"):
            assert f"GET {path}" in response.text
            assert http.get(path).status_code == 200
    for word in ("/v1/...", "/api/...", "EmbedBatch"):
        assert word in response.text


def test_a_long_header_is_not_repeated_whole(qwen_daemon: RunningDaemon) -> None:
    headers = {"content-type": "application/json", "content-encoding": "y" * 15_000}
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=b'{"text": "x"}', headers=headers)
    assert refusal_of_json(response.json()).reason == "UNIMPLEMENTED"
    assert len(response.content) < 5000


@pytest.mark.parametrize("values", [("1", "60000"), ("60000", "1"), ("60000", "60000")])
@pytest.mark.parametrize(
    ("content_type", "name", "unit"),
    [
        ("application/proto", "connect-timeout-ms", ""),
        ("application/json", "connect-timeout-ms", ""),
        ("application/grpc-web+proto", "grpc-timeout", "m"),
    ],
)
def test_a_time_limit_that_comes_twice_is_refused(
    values: tuple[str, str], content_type: str, name: str, unit: str, qwen_daemon: RunningDaemon
) -> None:
    body = b"{}" if content_type.endswith("json") else MESSAGE
    headers = [("content-type", content_type), *((name, value + unit) for value in values)]
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=body, headers=headers)
    if name == "grpc-timeout":
        assert "twice" in response.headers.get("grpc-message", "") + response.text
        return
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == MALFORMED
    assert "twice" in refusal.message


BAD_QUERIES = {
    "no message": "encoding=json",
    "no base64": "encoding=proto&base64=1&message=%F0",
    "base64 of nonsense": "encoding=proto&base64=1&message=_____w",
    "no JSON": "encoding=json&message=%7B",
    "no gzip": "encoding=json&compression=gzip&message=%7B%7D",
}


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_bad_query_over_connect(case: str, qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.get(f"{SERVICE}/Health?{BAD_QUERIES[case]}")
    assert response.status_code == 400
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")


@pytest.mark.parametrize("content_type", [b"application/json", b"application/grpc+json"])
async def test_header_of_no_interest_may_be_any_bytes(content_type: bytes, qwen_daemon: RunningDaemon) -> None:
    body = b'{"text": "x"}' if content_type == b"application/json" else envelope(b'{"text": "x"}')
    async with await RawClient.connect(qwen_daemon.socket) as client:
        headers = {b"content-type": content_type, b"x-note": b"Ren\xe9", b"user-agent": b"\xff\xfe"}
        exchange = await client.over(client.open(f"{SERVICE}/Embed".encode(), body, headers=headers))
    assert b'"vector"' in exchange.body


@pytest.mark.parametrize(("name", "value"), [(b"content-type", b"application/json\xff"), (b"connect-timeout-ms", b"\xb2")])
async def test_header_that_is_not_text(name: bytes, value: bytes, qwen_daemon: RunningDaemon) -> None:
    async with await RawClient.connect(qwen_daemon.socket) as client:
        headers = {b"content-type": b"application/json"} | {name: value}
        exchange = await client.over(client.open(f"{SERVICE}/Embed".encode(), b'{"text": "x"}', headers=headers))
    refusal = refusal_of_json(json.loads(exchange.body))
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")


# Messages in envelopes: streams of all protocols, and every call of gRPC and gRPC-Web

COMPRESSION = {
    "grpc": b"grpc-encoding",
    "grpc-web": b"grpc-encoding",
    "connect+proto": b"connect-content-encoding",
    "connect+json": b"connect-content-encoding",
}
TIMEOUT = {"grpc": b"grpc-timeout", "grpc-web": b"grpc-timeout"}

MALFORMED = ("invalid_argument", "MALFORMED_REQUEST")

BAD_ENVELOPES: dict[str, tuple[bytes, tuple[str, str]]] = {
    "unknown flags": (envelope(b"", flags=0x40), MALFORMED),
    "the flag that ends a stream": (envelope(b"{}", flags=0x02), MALFORMED),
    "the flag of trailers": (envelope(b"", flags=0x80), MALFORMED),
    "cut prefix": (b"\0\0\0", MALFORMED),
    "cut message": (envelope(b"abc", length=100), MALFORMED),
    "nonsense": (envelope(b"\xff\xff\xff"), MALFORMED),
    "too large": (envelope(b"", length=TOO_LARGE), ("resource_exhausted", "REQUEST_TOO_LARGE")),
    "compressed without a word": (envelope(gzip.compress(b"{}"), flags=1), ("internal", "MALFORMED_REQUEST")),
}


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize("case", BAD_ENVELOPES)
async def test_bad_envelope(case: str, protocol: str, qwen_daemon: RunningDaemon) -> None:
    body, expected = BAD_ENVELOPES[case]
    refusal = await _stream(qwen_daemon, protocol, body)
    assert (refusal.code, refusal.reason) == expected


BAD_GZIP: dict[str, tuple[bytes, tuple[str, str]]] = {
    "no gzip": (envelope(b"{}", flags=1), MALFORMED),
    "cut gzip": (envelope(gzip.compress(bytes(1000))[:-9], flags=1), MALFORMED),
    "gzip bomb": (envelope(gzip.compress(bytes(TOO_LARGE)), flags=1), ("resource_exhausted", "REQUEST_TOO_LARGE")),
}


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize("case", BAD_GZIP)
async def test_bad_gzip_in_an_envelope(case: str, protocol: str, qwen_daemon: RunningDaemon) -> None:
    body, expected = BAD_GZIP[case]
    refusal = await _stream(qwen_daemon, protocol, body, {COMPRESSION[protocol]: b"gzip"})
    assert (refusal.code, refusal.reason) == expected


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
async def test_unknown_compression_of_a_stream(protocol: str, qwen_daemon: RunningDaemon) -> None:
    refusal = await _stream(qwen_daemon, protocol, envelope(b"x", flags=1), {COMPRESSION[protocol]: b"br"})
    assert (refusal.code, refusal.reason) == ("unimplemented", "UNIMPLEMENTED")


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize("deadline", [b"soon", b"-1S", b"123456789012m"])
async def test_bad_deadline_of_a_stream(deadline: bytes, protocol: str, qwen_daemon: RunningDaemon) -> None:
    header = TIMEOUT.get(protocol, b"connect-timeout-ms")
    refusal = await _stream(qwen_daemon, protocol, envelope(b""), {header: deadline})
    assert (refusal.code, refusal.reason) == MALFORMED


@pytest.mark.parametrize("protocol", ["grpc", "grpc-web"])
@pytest.mark.parametrize("count", [0, 2])
async def test_call_with_another_number_of_messages_than_one(count: int, protocol: str, qwen_daemon: RunningDaemon) -> None:
    async with await RawClient.connect(qwen_daemon.socket) as client:
        headers = {b"content-type": CONTENT_TYPES[protocol]}
        exchange = await client.over(client.open(f"{SERVICE}/Embed".encode(), envelope(MESSAGE) * count, headers=headers))
    trailers = {name.decode(): value.decode() for name, value in exchange.headers.items()}
    if "grpc-status" not in trailers:
        trailers |= dict(line.split(": ", 1) for line in exchange.body[5:].decode().splitlines())
    refusal = refusal_of_trailers(trailers)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("unimplemented", "UNIMPLEMENTED")


# HTTP/2 itself


def frame(kind: int, stream: int, body: bytes, *, flags: int = 0) -> bytes:
    """Return a frame that no library would build."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


GARBAGE = {
    "data for no stream": (frame(0, 0, b"x"), ErrorCodes.PROTOCOL_ERROR),
    "data for a stream that never began": (frame(0, 1, b"x"), ErrorCodes.PROTOCOL_ERROR),
    "headers that do not decode": (
        frame(1, 1, b"\xff" * 8, flags=0x5),
        ErrorCodes.PROTOCOL_ERROR,
    ),  # RFC 9113 wants COMPRESSION_ERROR, h2 has this
    "a stream of the server's": (frame(1, 2, b"\x83", flags=0x5), ErrorCodes.PROTOCOL_ERROR),
    "settings of a wrong size": (frame(4, 0, bytes(5)), ErrorCodes.FRAME_SIZE_ERROR),
    "a ping of a wrong size": (frame(6, 0, bytes(7)), ErrorCodes.FRAME_SIZE_ERROR),
    "a window opened by nothing": (frame(8, 0, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
    "the rest of headers that never began": (frame(9, 1, b"\x83"), ErrorCodes.PROTOCOL_ERROR),
    "a frame larger than allowed": (frame(0, 1, bytes(16385)), ErrorCodes.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("case", GARBAGE)
async def test_garbage_in_http2_ends_its_connection_with_the_right_code(case: str, qwen_daemon: RunningDaemon) -> None:
    garbage, code = GARBAGE[case]
    client = H2Connection()
    client.initiate_connection()
    reader, writer = await asyncio.open_unix_connection(qwen_daemon.socket)
    writer.write(client.data_to_send() + garbage)
    events = client.receive_data(await asyncio.wait_for(reader.read(), 10))
    writer.close()
    [goaway] = [event for event in events if isinstance(event, ConnectionTerminated)]
    assert goaway.error_code == code


async def _stream(daemon: RunningDaemon, protocol: str, body: bytes, headers: dict[bytes, bytes] | None = None) -> Refusal:
    """Send a stream of raw bytes, and return the error that it ends with."""
    async with await StreamClient.open(daemon.socket, protocol, headers=headers) as stream:
        for start in range(0, len(body), 16384):
            stream.client.h2.send_data(stream.stream_id, body[start : start + 16384])
        stream.client.h2.end_stream(stream.stream_id)
        refusal = await stream.outcome()
    assert refusal is not None
    return refusal
