"""Attacks on the daemon's socket that try to make others wait. Each is cheap for its peer, and some are honest calls."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterable, Mapping

from hpack import Encoder

from tests.hostile.peer import DATA, END_STREAM, HEADERS, HELLO, RESET, WINDOW_UPDATE, Attack

SERVICE = "/runed.v1.RunedService"
MIB = 1024 * 1024

_PRIORITY, _SETTINGS, _PING, _CONTINUATION = 2, 4, 6, 9
_END_HEADERS = 0x4


# HTTP/1.1


def post(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """Return a request, after whose answer the server closes the connection."""
    lines = {"Host": "x", "Connection": "close", "Content-Type": content_type, "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def _json(method: str, body: bytes) -> bytes:
    return post(f"{SERVICE}/{method}", body)


def _proto(method: str, body: bytes) -> bytes:
    return post(f"{SERVICE}/{method}", body, "application/proto")


def _openai(body: bytes) -> bytes:
    return post("/v1/embeddings", body)


def _fill(start: bytes, piece: bytes, end: bytes, size: int = 31 * MIB) -> bytes:
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


def _chunks() -> bytes:
    head = f"POST {SERVICE}/Embed HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"


_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def _pipeline() -> bytes:
    one = post(f"{SERVICE}/Health", b"{}").replace(b"Connection: close\r\n", b"")
    return one * 4999 + post(f"{SERVICE}/Health", b"{}")


def _many_headers() -> bytes:
    lines = "".join(f"x{number}: 1\r\n" for number in range(1500))
    one = f"POST {SERVICE}/Health HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n{lines}\r\n{{}}"
    return one.encode() * 200 + post(f"{SERVICE}/Health", b"{}")


# Messages in envelopes, over HTTP/1.1 and over HTTP/2


def envelope(payload: bytes, flags: int = 0) -> bytes:
    """Return a message in its envelope."""
    return struct.pack(">BI", flags, len(payload)) + payload


# HTTP/2


def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Return a frame."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _head(encoder: Encoder, method: str, content_type: str = "application/grpc+proto", **more: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"{SERVICE}/{method}",
        ":authority": "x",
        "te": "trailers",
        "content-type": content_type,
    }
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    data: bytes = encoder.encode(list(headers.items()))
    return data


def _calls(method: str, body: bytes, count: int, content_type: str = "application/grpc+proto") -> bytes:
    encoder = Encoder()
    parts = [HELLO]
    for stream in range(1, 2 * count, 2):
        parts.append(frame(HEADERS, stream, _head(encoder, method, content_type), _END_HEADERS))
        parts.append(frame(DATA, stream, body, END_STREAM))
    return b"".join(parts)


def _resets(count: int, *, apart: bool = False, body: bytes = b"") -> bytes:
    encoder = Encoder()
    parts = [HELLO]
    for stream in range(1, 2 * count, 2):
        parts.append(frame(HEADERS, stream, _head(encoder, "EmbedBatch"), _END_HEADERS))
        if body:
            parts.append(frame(DATA, stream, body, END_STREAM))
        if apart:
            parts += [frame(_PING, 0, bytes(8))] * 100
        parts.append(frame(RESET, stream, b"\0\0\0\x08"))
    return b"".join(parts)


def _upload(
    method: str, body: bytes, *, size: int = 16_384, content_type: str = "application/grpc+proto", **more: str
) -> bytes:
    """One call whose body comes in frames of a size. The daemon's windows are far larger than 64 KiB, but a stream's is not."""
    parts = [HELLO, frame(HEADERS, 1, _head(Encoder(), method, content_type, **more), _END_HEADERS)]
    for start in range(0, len(body), size):
        last = start + size >= len(body)
        parts.append(frame(DATA, 1, body[start : start + size], END_STREAM if last else 0))
    return b"".join(parts)


def _frames(one: bytes, count: int) -> Callable[[], bytes]:
    return lambda: HELLO + one * count


def _open_stream(one: bytes, count: int) -> Callable[[], bytes]:
    head = frame(HEADERS, 1, _head(Encoder(), "EmbedStream"), _END_HEADERS)
    return lambda: HELLO + head + one * count


def _headers_bomb() -> bytes:
    encoder = Encoder()
    parts = [HELLO]
    many = [(f"x{number}", "1") for number in range(20)]
    for stream in range(1, 4000, 2):
        block = _head(encoder, "Nothing") + encoder.encode(many * 60)
        parts.append(frame(HEADERS, stream, block, _END_HEADERS | END_STREAM))
    return b"".join(parts)


def _field(number: int, payload: bytes) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    return varint(number << 3 | 2) + varint(len(payload)) + payload


_WORDS = b"the quick brown fox jumps over the lazy dog and then it sleeps "
_HEALTH = envelope(b"")
_STREAM_ITEM = _field(1, _field(1, b"a") + _field(2, b"b"))
_BATCH_2048 = json.dumps({"texts": [f"text number {number}" for number in range(2048)]}).encode()

BODIES: Mapping[str, Callable[[], bytes]] = {
    # Compression
    "gzip of empty members": lambda: post(f"{SERVICE}/Embed", gzip.compress(b"") * (2 * MIB // 20), Content_Encoding="gzip"),
    "gzip of tiny members": lambda: post(f"{SERVICE}/Embed", gzip.compress(b" ") * (MIB // 21), Content_Encoding="gzip"),
    "gzip bomb": lambda: post(f"{SERVICE}/Embed", gzip.compress(bytes(500 * MIB)), Content_Encoding="gzip"),
    "gzip of empty members in an envelope": lambda: post(
        f"{SERVICE}/Embed",
        envelope(gzip.compress(b"") * (2 * MIB // 20), 1),
        "application/grpc-web+proto",
        grpc_encoding="gzip",
    ),
    "gzip bombs in envelopes": lambda: _upload(
        "EmbedStream", envelope(gzip.compress(b"\x0a\x00" * 15 * MIB), 1) * 8, grpc_encoding="gzip"
    ),
    # JSON
    "JSON of 8 million texts": lambda: _json("EmbedBatch", _fill(b'{"texts":[""', b',""', b"]}", 24 * MIB)),
    "JSON of one-letter texts to count": lambda: _json("CountTokens", _fill(b'{"texts":["a"', b',"a"', b"]}")),
    "JSON of 2 million unknown keys": lambda: post(
        f"{SERVICE}/Embed", b"{" + b",".join(b'"k%d":0' % number for number in range(2_000_000)) + b"}"
    ),
    "JSON of the same unknown key": lambda: _json("Embed", _fill(b'{"a":0', b',"a":0', b"}")),
    "JSON of the same known key": lambda: _json("Embed", _fill(b'{"text":""', b',"text":""', b"}")),
    "JSON of unknown numbers": lambda: _json("Embed", _fill(b'{"a":[0', b",0", b"]}")),
    "JSON of numbers for texts": lambda: _json("EmbedBatch", _fill(b'{"texts":[0', b",0", b"]}")),
    "JSON of lists for texts": lambda: _json("EmbedBatch", _fill(b'{"texts":[[]', b",[]", b"]}")),
    "JSON of unknown objects": lambda: _json("Embed", _fill(b'{"a":[{}', b',{"b":{}}', b"]}")),
    "deep JSON": lambda: _json("Embed", b'{"a":' + b"[" * (15 * MIB) + b"]" * (15 * MIB) + b"}"),
    "JSON with a number of 10^7 digits": lambda: _json("Embed", b'{"text":"a","dimensions":' + b"1" * 10_000_000 + b"}"),
    "JSON with an unknown number of 3*10^7 digits": lambda: _json("Embed", b'{"text":"","a":' + b"1" * 30_000_000 + b"}"),
    "JSON with a float of 10^7 digits": lambda: _json("Embed", b'{"text":"","dimensions":0.' + b"1" * 10_000_000 + b"e9}"),
    "JSON with a key of 30 MiB": lambda: _json("Embed", _fill(b'{"text":"a","', b"k", b'":0}')),
    "JSON with a role of 30 MiB": lambda: _json("Embed", _fill(b'{"text":"a","role":"', b"R", b'"}')),
    "JSON of escapes": lambda: _json("Embed", _fill(b'{"text":"', b"\\u0061", b'"}')),
    "JSON of backslashes": lambda: _json("Embed", _fill(b'{"text":"', b"\\\\", b'"}')),
    "JSON of surrogates": lambda: _json("Embed", _fill(b'{"text":"', b"\\ud800", b'"}')),
    "JSON of spaces": lambda: _json("Embed", _fill(b'{"text":', b" ", b'"a"}')),
    "JSON of stream items": lambda: post(
        f"{SERVICE}/SetCentroids", envelope(_fill(b'{"batch":{"centroids":[{}', b",{}", b"]}}")), "application/connect+json"
    ),
    "JSON of floats": lambda: post(
        f"{SERVICE}/SetCentroids",
        envelope(_fill(b'{"batch":{"centroids":[{"vec":[0', b",0", b"]}]}}")),
        "application/connect+json",
    ),
    # One text
    "text of 30 MiB": lambda: _json("Embed", _fill(b'{"text":"', _WORDS, b'"}')),
    "text of 30 MiB, truncated": lambda: _json("Embed", _fill(b'{"truncate":"TRUNCATE_END","text":"', _WORDS, b'"}')),
    "text of 30 MiB to count": lambda: _json("CountTokens", _fill(b'{"texts":["', _WORDS, b'"]}')),
    "word of 30 MiB": lambda: _json("Embed", _fill(b'{"text":"', b"a", b'"}')),
    "text of 30 MiB of spaces": lambda: _json("Embed", _fill(b'{"text":"', b" ", b'"}')),
    "text of 30 MiB of four-byte characters": lambda: _json("Embed", _fill(b'{"text":"', "\U0001f600".encode(), b'"}')),
    "text of 30 MiB of three-byte characters": lambda: _json("Embed", _fill(b'{"text":"', "\u4e16".encode(), b'"}')),
    "OpenAI text of 30 MiB of four-byte characters": lambda: _openai(
        _fill(b'{"model":"x","input":"', "\U0001f600".encode(), b'"}')
    ),
    "text of 30 MiB of combining marks": lambda: _json("Embed", _fill(b'{"text":"a', "\u0301\u0327".encode(), b'"}')),
    "text of 4 MiB": lambda: _json("Embed", _fill(b'{"text":"', _WORDS, b'"}', 4 * MIB)),
    "text of 4 MiB, truncated": lambda: _json("Embed", _fill(b'{"truncate":"TRUNCATE_END","text":"', _WORDS, b'"}', 4 * MIB)),
    "word of 4 MiB to count": lambda: _json("CountTokens", _fill(b'{"texts":["', b"a", b'"]}', 4 * MIB)),
    "texts of 3.9 MiB to count": lambda: _json("CountTokens", _fill(b'{"texts":["a', b'","' + _WORDS * 64_000, b'"]}')),
    "batch of long texts, truncated": lambda: _json(
        "EmbedBatch",
        _fill(b'{"truncate":"TRUNCATE_END","perItemErrors":true,"texts":["a', b'","' + _WORDS * 240, b'"]}', 8 * MIB),
    ),
    "batch of texts that are all too long": lambda: _json(
        "EmbedBatch", _fill(b'{"perItemErrors":true,"texts":["a', b'","' + _WORDS * 240, b'"]}', 28 * MIB)
    ),
    "batch of spaces": lambda: _json(
        "EmbedBatch", _fill(b'{"perItemErrors":true,"texts":["a', b'","' + b" " * 15_000, b'"]}', 28 * MIB)
    ),
    "batch of 28 MiB": lambda: _json("EmbedBatch", _fill(b'{"texts":["a', b'","' + _WORDS * 240, b'"]}', 28 * MIB)),
    "instruction of 30 MiB": lambda: _json("Embed", _fill(b'{"text":"a","role":"ROLE_QUERY","instruction":"', b"i", b'"}')),
    # Protobuf
    "protobuf of 16 million texts": lambda: _proto("EmbedBatch", b"\x0a\x00" * (15 * MIB)),
    "protobuf of unknown fields": lambda: _proto("EmbedBatch", b"\xf8\x06\x01" * (10 * MIB)),
    "protobuf of groups": lambda: _proto("EmbedBatch", b"\xfb\x06\xfc\x06" * (7 * MIB)),
    "protobuf of one option again and again": lambda: _proto("EmbedBatch", b"\x80\x01\x01" * (10 * MIB)),
    "deep protobuf": lambda: _proto("EmbedBatch", b"\xfb\x06" * (15 * MIB)),
    "protobuf text of 30 MiB": lambda: _proto("Embed", _field(1, _fill(b"", _WORDS, b""))),
    "protobuf of centroids": lambda: post(
        f"{SERVICE}/SetCentroids",
        envelope(b"\x0a\x04\x10\x40\x18\x01") + envelope(_field(2, b"\x0a\x00" * (15 * MIB))),
        "application/connect+proto",
    ),
    "protobuf of one centroid of 8 million values": lambda: post(
        f"{SERVICE}/SetCentroids",
        envelope(b"\x0a\x04\x10\x40\x18\x01") + envelope(_field(2, _field(1, b"\x15\0\0\0\0" * (6 * MIB)))),
        "application/connect+proto",
    ),
    "tiny messages": lambda: post(f"{SERVICE}/SetCentroids", envelope(b"") * 2_000_000, "application/connect+proto"),
    # The OpenAI API
    "OpenAI of 8 million texts": lambda: _openai(_fill(b'{"input":[""', b',""', b"]}")),
    "OpenAI of tokens": lambda: _openai(_fill(b'{"input":[[1', b",1", b"]]}")),
    "OpenAI of lists of tokens": lambda: _openai(_fill(b'{"input":[[1]', b",[1]", b"]}")),
    "OpenAI of unknown keys": lambda: post(
        "/v1/embeddings", b"{" + b",".join(b'"k%d":0' % number for number in range(2_000_000)) + b"}"
    ),
    "OpenAI text of 30 MiB": lambda: _openai(_fill(b'{"input":"', _WORDS, b'"}')),
    # HTTP/1.1
    "tiny chunks": _chunks,
    "5,000 calls in a pipeline": _pipeline,
    "many headers": _many_headers,
    # HTTP/2
    "rapid reset": lambda: _resets(40_000),
    "rapid reset after a body": lambda: _resets(20_000, body=envelope(_field(1, b"a") * 1000)),
    "slow reset": lambda: _resets(400, apart=True),
    "streams that nobody ends": lambda: b"".join(
        [HELLO, *(frame(HEADERS, stream, _head(Encoder(), "EmbedStream"), _END_HEADERS) for stream in range(1, 20_000, 2))]
    ),
    "pings": _frames(frame(_PING, 0, bytes(8)), 200_000),
    "settings": _frames(frame(_SETTINGS, 0, b"\0\4\0\0\1\0"), 200_000),
    "empty settings": _frames(frame(_SETTINGS, 0), 200_000),
    "window updates": _frames(frame(WINDOW_UPDATE, 0, b"\0\0\0\1"), 60_000),
    "priorities": _frames(frame(_PRIORITY, 1, b"\0\0\0\0\x10"), 200_000),
    "unknown frames": _frames(frame(0xFA, 0), 200_000),
    "empty data": _open_stream(frame(DATA, 1), 200_000),
    "data of a byte": _open_stream(frame(DATA, 1, b"\0"), 200_000),
    "padding": _open_stream(frame(DATA, 1, b"\x02\0\0", 0x8), 200_000),
    "continuations": lambda: HELLO + frame(HEADERS, 1, b"", 0) + frame(_CONTINUATION, 1) * 200_000,
    "many headers over HTTP/2": _headers_bomb,
    "items of a stream": lambda: _upload("EmbedStream", envelope(b"\x0a\x00" * (15 * MIB))),
    "tiny messages of a stream": lambda: _upload("EmbedStream", envelope(b"") * 200_000),
    "messages of a text each": lambda: _upload("EmbedStream", envelope(_STREAM_ITEM) * 20_000),
}
"""The makers of the bytes that one peer sends, by the name of the attack. All these bytes together take 1.3 GiB."""

ATTACKS: Mapping[str, Attack] = {
    **{name: Attack(make) for name, make in BODIES.items()},
    "honest Health calls": Attack(lambda: _calls("Health", _HEALTH, 5000), calls_at_once=100),
    "honest cached texts": Attack(lambda: _calls("Embed", envelope(_field(1, b"cached")), 3000), calls_at_once=100),
    "honest batches": Attack(
        lambda: _calls("EmbedBatch", envelope(b"".join(_field(1, b"cached %d" % n) for n in range(1000))), 60), calls_at_once=30
    ),
    "honest batches in JSON": Attack(lambda: post(f"{SERVICE}/EmbedBatch", _BATCH_2048, Accept_Encoding="gzip")),
    "honest batches of OpenAI": Attack(lambda: post("/v1/embeddings", _BATCH_2048.replace(b"texts", b"input"))),
    "descriptions": Attack(lambda: _calls("Info", _HEALTH, 3000), calls_at_once=100),
    "metrics": Attack(lambda: _METRICS * 2999 + _METRICS.replace(b"Host", b"Connection: close\r\nHost")),
}
"""All attacks by name, each by one peer."""


def of(names: Iterable[str]) -> dict[str, Attack]:
    """Return the attacks whose names contain one of the given words; all of them for no word."""
    words = list(names)
    return {name: it for name, it in ATTACKS.items() if not words or any(word in name for word in words)}
