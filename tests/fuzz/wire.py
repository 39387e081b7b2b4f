"""The daemon's socket as targets: after any bytes, an answer, an error or the end of the connection comes."""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Decoder, HPACKError
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.fuzz.mutation import Mutator

SERVICE = "/runed.v1.RunedService"

ANSWER_SECONDS = 20.0
"""Seconds within which the daemon answers or closes, once the client has sent everything; far more than it needs."""

QUIET_SECONDS = 0.1
"""Seconds without a byte from the daemon after which the client ends its sending side."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_FAULTS = re.compile(
    rb'HTTP/1\.1 500|"code": ?"(?:internal|unknown|data_loss)"|grpc-status: ?(?:2|13|15)\b|"type": ?"server_error"'
)
"""What an answer has if the daemon failed, instead of refusing what it was sent."""

_HEADERS, _RESET, _GOAWAY, _CONTINUATION, _DATA = 1, 3, 7, 9, 0
_INTERNAL_ERROR = 2

_DETAILS = b"grpc-status-details-bin"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{20,}")


class FindingError(Exception):
    """The daemon broke a promise. The text says which."""


@dataclass(frozen=True)
class WireTarget:
    """One way to talk to the daemon.

    Attributes:
        seeds: Makes the inputs to begin with.
        words: Pieces that mean something to the daemon.
        make: Makes an input; None means changes of bytes.
        wrap: Turns an input into the bytes that are sent.
    """

    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()
    make: Callable[[Mutator, Random], bytes] | None = None
    wrap: Callable[[bytes, Random], bytes] = lambda data, _: data


def converse(path: Path, data: bytes) -> str:
    """Send bytes over a new connection, end the sending side, and read everything that comes.

    Returns:
        A word for what came: the statuses and the reasons.

    Raises:
        FindingError: The answer tells of a fault of the daemon, or there is no end.
    """
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(path))
            _exchange(sock, data, received)
    except TimeoutError:
        raise FindingError(f"neither an answer nor the end of the connection after {ANSWER_SECONDS:g} s") from None
    except ConnectionError as error:
        return type(error).__name__ + _judge(bytes(received))
    return _judge(bytes(received))


def _exchange(sock: socket.socket, data: bytes, received: bytearray) -> None:
    """Send everything, and receive to the end. The sending side ends when nothing has come for a while."""
    sock.sendall(data)
    until, ended = time.monotonic() + ANSWER_SECONDS, False
    while time.monotonic() < until:
        if select.select([sock], [], [], QUIET_SECONDS if not ended else ANSWER_SECONDS)[0]:
            if not (chunk := sock.recv(65536)):
                return
            received += chunk
        elif not ended:
            sock.shutdown(socket.SHUT_WR)
            ended = True
    raise TimeoutError


def _judge(received: bytes) -> str:
    """Return a word for an answer. Raise if it tells of a fault."""
    if received.startswith(b"HTTP/1.1") or not received:
        _check_body(received)
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", received)[:3]
        reasons = re.findall(rb'"(?:code|reason)": ?"([a-zA-Z_]+)"', received)[:2]
        return b" ".join([*statuses, *reasons]).decode()
    if received[3] > 9 or len(received) < 9:
        raise FindingError(f"the answer is neither HTTP/1.1 nor HTTP/2: {received[:100]!r}")
    return _judge_frames(received)


def _check_body(body: bytes) -> None:
    if (found := _FAULTS.search(body)) and not any(map(_is_refusal, _BASE64.findall(body))):
        raise FindingError(f"the answer has {found[0].decode()}")


def _is_refusal(details: bytes) -> bool:
    """Return whether an error's details blame the request. Protocols have the code INTERNAL for some bad requests, too."""
    with suppress(binascii.Error):
        return b"MALFORMED_REQUEST" in base64.b64decode(details + b"==")
    return False


def _judge_frames(received: bytes) -> str:
    decoder, words, at = Decoder(), [], 0
    decoder.max_allowed_table_size = 2**31  # the input may have allowed any
    while at + 9 <= len(received):
        size, kind = int.from_bytes(received[at : at + 3], "big"), received[at + 3]
        body = received[at + 9 : at + 9 + size]
        at += 9 + size
        if kind == _HEADERS and len(body) == size:
            try:
                fields = dict(decoder.decode(body, raw=True))
            except HPACKError as error:
                raise FindingError(f"an answer's headers cannot be read: {error}") from None
            status, code = fields.get(b":status", b""), fields.get(b"grpc-status", b"")
            if status == b"500" or (code in {b"2", b"13", b"15"} and not _is_refusal(bytes(fields.get(_DETAILS, b"")))):
                raise FindingError(f"the answer has status {status!r}, code {code!r}, message {fields.get(b'grpc-message')!r}")
            words.append((status + b"/" + code).decode())
        elif kind == _DATA:
            _check_body(body)
        elif kind in {_RESET, _GOAWAY} and len(body) == size:
            code_at = 0 if kind == _RESET else 4
            code_number = int.from_bytes(body[code_at : code_at + 4], "big")
            if code_number == _INTERNAL_ERROR:
                raise FindingError(f"a frame of kind {kind} with INTERNAL_ERROR")
            words.append(f"{kind}:{code_number}")
    return " ".join(words[:4])


# Inputs


def post(path: str, content_type: str, body: bytes, **headers: str) -> bytes:
    """Return a request of HTTP/1.1."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: runed\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _envelope(body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(body)) + body


_EMBED = pb.EmbedRequest(text="a text").SerializeToString()
_BATCH = pb.EmbedBatchRequest(texts=["a text", "another", ""]).SerializeToString()
_HEADER = pb.SetCentroidsRequest(header=pb.CentroidSetHeader(version="v", dim=64, nlist=1)).SerializeToString()


def _requests() -> Sequence[bytes]:
    chunked = (
        f"POST {SERVICE}/Embed HTTP/1.1\r\nHost: runed\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        '\r\n5\r\n{"tex\r\n9\r\nt": "hi"}\r\n0\r\n\r\n'
    )
    return [
        post(
            f"{SERVICE}/Embed", "application/json", b'{"text": "hi"}', connect_protocol_version="1", connect_timeout_ms="3000"
        ),
        post(f"{SERVICE}/Health", "application/proto", b"") + post(f"{SERVICE}/Info", "application/json", b"{}"),
        chunked.encode(),
        b"GET /metrics HTTP/1.1\r\nHost: runed\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n\r\n",
        b"\r\nPOST http://runed/v1/embeddings HTTP/1.1\r\nHost: runed\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n" + b'{"input": "hi"}',
        b"GET / HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: runed\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    ]


def _json_bodies() -> Sequence[bytes]:
    return [
        b'{"text": "hi", "withRoute": true}',
        b'{"texts": ["a", "b \\u00e4", ""], "role": "ROLE_QUERY", "truncate": "TRUNCATE_END", "dimensions": 32}',
        b'{"input": ["a", "b"], "model": "m", "encoding_format": "base64", "dimensions": 32, "user": null}',
        b'{"input": [[1, 2], [3]]}',
        b"{}",
    ]


def _with_method(data: bytes, random: Random) -> bytes:
    """Send a body of JSON to some method."""
    path = random.choice(
        [*(f"{SERVICE}/{method}" for method in ("Embed", "EmbedBatch", "CountTokens", "Info", "Health")), "/v1/embeddings"]
    )
    if random.random() < 0.1:
        return post(path, "application/json", gzip.compress(data, 1, mtime=0), content_encoding="gzip")
    return post(path, random.choice(["application/json"] * 8 + ["application/json; charset=utf-16", "text/plain"]), data)


def _messages() -> Sequence[bytes]:
    stream = pb.EmbedStreamRequest(items=[pb.EmbedStreamItem(id="1", text="a")]).SerializeToString()
    squeezed = gzip.compress(_EMBED, 1, mtime=0)
    return [
        _EMBED,
        _BATCH,
        _envelope(_EMBED),
        _envelope(stream) + _envelope(stream) + _envelope(b"{}", 2),
        _envelope(_HEADER) + _envelope(pb.SetCentroidsRequest(batch=pb.CentroidBatch()).SerializeToString()),
        _envelope(squeezed, 1),
        squeezed,
    ]


def _in_an_envelope(data: bytes, random: Random) -> bytes:
    """Send bytes as the body of a call of some protocol, over HTTP/1.1."""
    method = random.choice(["Embed", "EmbedBatch", "EmbedStream", "SetCentroids", "CountTokens", "Health"])
    kind = random.choice(
        ["application/proto", "application/grpc-web+proto", "application/grpc-web-text", "application/connect+proto",
         "application/connect+json", "application/grpc+proto"]
    )  # fmt: skip
    compression = random.choice(
        [{}, {}, {}, {"content_encoding": "gzip"}, {"grpc_encoding": "gzip"}, {"connect_content_encoding": "gzip"}]
    )
    return post(f"{SERVICE}/{method}", kind, data, **compression)


def _conversation(method: str, body: bytes, *, ended: bool = True, content_type: str = "application/grpc+proto") -> bytes:
    """Return what a client sends over HTTP/2 for a call."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", f"{SERVICE}/{method}"), (":authority", "runed"),
        ("te", "trailers"), ("content-type", content_type), ("grpc-timeout", "5S"),
    ]  # fmt: skip
    for stream in (1, 3):
        connection.send_headers(stream, headers)
        connection.send_data(stream, body[:16384], end_stream=ended)
    return connection.data_to_send()


def _conversations() -> Sequence[bytes]:
    return [
        _conversation("Embed", _envelope(_EMBED)),
        _conversation("EmbedBatch", _envelope(_BATCH), ended=False),
        _conversation("EmbedStream", _messages()[3]),
        _conversation("Health", _envelope(b"")),
        _conversation("EmbedStream", _messages()[3], content_type="application/connect+proto"),
    ]


def _frames(data: bytes) -> list[bytes]:
    """Cut a conversation into the preface and its frames."""
    pieces, at = [data[: len(_PREFACE)]], len(_PREFACE)
    while at < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        pieces.append(data[at:end])
        at = end
    return pieces


def _change_frames(mutator: Mutator, random: Random) -> bytes:
    """Repeat, drop, exchange and change the frames of a conversation. Most keep a length that is right."""
    preface, *frames = _frames(random.choice(mutator.corpus))
    for _ in range(random.choice([1, 1, 2, 4])):
        place = random.randrange(len(frames)) if frames else 0
        match random.randrange(7):
            case 0:
                frames[place : place + 1] *= random.choice([0, 2, 3, 200])
            case 1:
                random.shuffle(frames)
            case 2 if frames:
                body = Mutator([frames[place][9:] or b"\0"], mutator.words).make(random)[:16384]
                frames[place] = len(body).to_bytes(3, "big") + frames[place][3:9] + body
            case 3 if frames:
                header = bytearray(frames[place].ljust(9, b"\0"))
                header[random.randrange(9)] = random.choice([0, 1, 2, 4, 8, 0x20, 0xFF, random.randrange(256)])
                frames[place] = bytes(header)
            case 4:
                body = random.randbytes(random.choice([0, 1, 4, 5, 6, 8, 9, 100]))
                head = len(body).to_bytes(3, "big") + bytes([random.randrange(12), random.choice([0, 1, 4, 5, 8, 0x20])])
                frames.insert(place, head + random.choice([0, 1, 2, 3, 5, 2**31 - 1]).to_bytes(4, "big") + body)
            case 5 if frames:
                frames[place] = frames[place][: random.randrange(len(frames[place]) + 1)]
            case _:
                preface = random.choice([preface, preface, preface, preface[:-3], preface + preface])
    return (preface + b"".join(frames))[:65536]


def _over_http2(data: bytes, random: Random) -> bytes:
    method = random.choice(["Embed", "EmbedBatch", "EmbedStream", "SetCentroids", "CountTokens"])
    kind = random.choice(["application/grpc+proto", "application/grpc+json", "application/connect+proto", "application/proto"])
    return _conversation(method, data, ended=random.random() < 0.9, content_type=kind)


WIRE_TARGETS = {
    "http1": WireTarget(
        _requests,
        (
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"HTTP/9.9",
            b"Connection: close\r\n",
            b"\xe4",
            b"GET",
            b": ",
        ),
    ),
    "json": WireTarget(_json_bodies, (b'"text":', b'"texts":', b'"input":', b'"dimensions":'), wrap=_with_method),
    "envelope": WireTarget(_messages, (b"\x0a\x00", b"\x0a\x01a", b"\0\0\0\0\0", b"\x1f\x8b"), wrap=_in_an_envelope),
    "http2": WireTarget(_conversations, (_PREFACE,), make=_change_frames),
    "stream": WireTarget(_messages, (b"\x0a\x00", b"\0\0\0\0\0"), wrap=_over_http2),
}
"""The ways to talk to the daemon, by name."""
