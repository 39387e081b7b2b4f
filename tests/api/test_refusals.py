"""Bad requests get the protocol's own error with our reason and the facts, and the daemon goes on."""

from __future__ import annotations

import struct
from typing import cast

import grpc
import pytest
from google.protobuf.message import Message
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchRequest,
    EmbedRequest,
    EmbedResponse,
    InfoRequest,
    InfoResponse,
)

from tests.support import GRPC_OPTIONS, PROTOCOLS, RunningDaemon, call, raw_stub, refusal_of_json, wait_until

SERVICE = "/runed.v1.RunedService"

CASES: dict[str, tuple[str, Message, str, str, str]] = {
    "empty text": ("Embed", EmbedRequest(text=""), "invalid_argument", "EMPTY_TEXT", "empty"),
    "blank text": ("Embed", EmbedRequest(text=" \n\t\u3000"), "invalid_argument", "EMPTY_TEXT", "white space"),
    "NUL text": ("Embed", EmbedRequest(text="abc\0def"), "invalid_argument", "INVALID_TEXT", "position 3"),
    "empty batch": ("EmbedBatch", EmbedBatchRequest(), "invalid_argument", "EMPTY_BATCH", "at least one"),
    "one bad text in a batch": (
        "EmbedBatch",
        EmbedBatchRequest(texts=["fine", "also fine", ""]),
        "invalid_argument",
        "EMPTY_TEXT",
        "text 2 of the batch",
    ),
    "too many texts": (
        "EmbedBatch",
        EmbedBatchRequest(texts=["x"] * 2049),
        "invalid_argument",
        "BATCH_TOO_LARGE",
        "the limit is 2048",
    ),
    "huge text": ("Embed", EmbedRequest(text="word " * 200_000), "invalid_argument", "TEXT_TOO_LONG", "split or shorten"),
    "too large message": (
        "Embed",
        EmbedRequest(text="x" * (32 * 1024 * 1024 + 1)),
        "resource_exhausted",
        "REQUEST_TOO_LARGE",
        "33554432 bytes",
    ),
    "no centroids": (
        "Embed",
        EmbedRequest(text="x", with_route=True),
        "failed_precondition",
        "NO_CENTROID_SET",
        "push one with SetCentroids",
    ),
}


def assert_alive(daemon: RunningDaemon) -> None:
    answer = call("grpc", daemon.socket, "Embed", EmbedRequest(text="still there"))
    assert len(cast("EmbedResponse", answer.message).vector) == 64


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", CASES)
def test_refused_with_reason_and_words(case: str, protocol: str, qwen_daemon: RunningDaemon) -> None:
    method, request, code, reason, words = CASES[case]
    refusal = call(protocol, qwen_daemon.socket, method, request).refusal
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (code, reason)
    assert words in refusal.message
    assert_alive(qwen_daemon)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_too_long_text_tells_exact_tokens_and_limit(protocol: str, qwen_daemon: RunningDaemon) -> None:
    limit = cast("InfoResponse", call("grpc", qwen_daemon.socket, "Info", InfoRequest()).message).max_text_length
    # Qwen's tokenizer makes one token of each digit, and EOS is one more.
    fits = call(protocol, qwen_daemon.socket, "Embed", EmbedRequest(text="7" * (limit - 1)))
    assert fits.refusal is None
    too_long = "7" * limit
    refusal = call(protocol, qwen_daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=["fine", too_long])).refusal
    assert refusal is not None
    assert refusal.reason == "TEXT_TOO_LONG"
    assert refusal.metadata["limit"] == str(limit)
    assert refusal.metadata["index"] == "1"
    assert refusal.metadata["tokens"] == str(len(too_long) + 1)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/proto", b"\x0a\xff\xff\xff\xff\xff"),
        ("application/proto", b"\x0a\x02\xff\xfe"),
        ("application/json", b'{"text": '),
        ("application/json", b'{"text": 7}'),
        ("application/json", b'{"text": "\xff"}'),
    ],
    ids=["cut protobuf", "invalid UTF-8", "cut JSON", "wrong type", "invalid UTF-8 in JSON"],
)
def test_malformed_request_over_connect(content_type: str, body: bytes, qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=body, headers={"content-type": content_type})
    assert response.status_code == 400
    refusal = refusal_of_json(response.json())
    assert (refusal.code, refusal.reason) == ("invalid_argument", "MALFORMED_REQUEST")
    assert_alive(qwen_daemon)


@pytest.mark.parametrize("body", [b"\x0a\xff\xff\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["cut protobuf", "invalid UTF-8"])
def test_malformed_request_over_grpc(body: bytes, qwen_daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(f"unix:{qwen_daemon.socket}", options=GRPC_OPTIONS) as channel:
        stub = raw_stub(channel, f"{SERVICE}/Embed")
        with pytest.raises(grpc.RpcError) as caught:
            stub(body, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert_alive(qwen_daemon)


@pytest.mark.parametrize("path", [f"{SERVICE}/Nonsense", "/other.v1.Service/Embed", "/nothing"])
def test_unknown_method_names_the_known_ones(path: str, qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.post(path, json={})
    assert response.status_code == 404
    refusal = refusal_of_json(response.json())
    assert refusal.reason == "UNIMPLEMENTED"
    assert "EmbedBatch" in refusal.message
    with grpc.insecure_channel(f"unix:{qwen_daemon.socket}", options=GRPC_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            raw_stub(channel, path)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "EmbedBatch" in str(caught.value.details())
    assert_alive(qwen_daemon)


def test_unknown_content_type_and_http_method_are_told_the_right_one(qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        form = http.post(  # what curl sends where the header is forgotten
            f"{SERVICE}/Embed", content=b"text=x", headers={"content-type": "application/x-www-form-urlencoded"}
        )
        put = http.put(f"{SERVICE}/Embed", json={"text": "x"})
        head = http.head(f"{SERVICE}/Embed")
    for response, status, hint in ((form, 415, "Content-Type: application/json"), (put, 405, "send a POST")):
        assert response.status_code == status
        refusal = refusal_of_json(response.json())
        assert refusal.reason == "MALFORMED_REQUEST"
        assert hint in refusal.message
    assert (head.status_code, head.content) == (405, b"")
    assert_alive(qwen_daemon)


def test_grpc_over_http1_is_told_what_it_needs(qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=b"", headers={"content-type": "application/grpc"})
    assert response.status_code == 505
    refusal = refusal_of_json(response.json())
    assert refusal.reason == "MALFORMED_REQUEST"
    assert "HTTP/2" in refusal.message
    assert "request failed" not in qwen_daemon.log()
    assert_alive(qwen_daemon)


def test_cut_grpc_frame_is_refused(qwen_daemon: RunningDaemon) -> None:
    frame = struct.pack(">BI", 0, 100) + b"only this"
    with qwen_daemon.http() as http:
        response = http.post(f"{SERVICE}/Embed", content=frame, headers={"content-type": "application/grpc-web+proto"})
    assert b"grpc-status: 3" in response.content or response.headers.get("grpc-status") == "3"
    assert_alive(qwen_daemon)


def test_deadline_is_honoured(qwen_daemon: RunningDaemon) -> None:
    request = EmbedBatchRequest(texts=[f"{number} some text of a few words " * 20 for number in range(2000)])
    with grpc.insecure_channel(f"unix:{qwen_daemon.socket}", options=GRPC_OPTIONS) as channel:
        stub = raw_stub(channel, f"{SERVICE}/EmbedBatch")
        with pytest.raises(grpc.RpcError) as caught:
            stub(request.SerializeToString(), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_alive(qwen_daemon)
    assert qwen_daemon.health().get("inFlightRequests", "0") == "0"


def test_health_by_plain_get(qwen_daemon: RunningDaemon) -> None:
    with qwen_daemon.http() as http:
        response = http.get(f"{SERVICE}/Health", params={"encoding": "json", "message": "{}"})
    assert response.json()["status"] == "STATUS_OK"


def test_log_never_holds_the_text(qwen_daemon: RunningDaemon) -> None:
    secret = "tangerine-otter-4711"
    qwen_daemon.call("Embed", {"text": secret})
    qwen_daemon.call("Embed", {"text": secret + "\0"})
    qwen_daemon.call("EmbedBatch", {"texts": [secret, ""]})
    qwen_daemon.call("EmbedBatch", {"texts": secret})

    def lines_about_refusals() -> list[str]:
        return [line["method"] for line in qwen_daemon.log_lines() if line.get("code") == "invalid_argument"]

    # Refusals of a kind share a line a second, also with those of other tests.
    wait_until(lambda: lines_about_refusals()[-1:] == ["EmbedBatch"], what="the lines about refused calls")
    assert "Embed" in lines_about_refusals()
    lines = [line for line in qwen_daemon.log_lines() if line.get("code") == "ok" and line["method"] == "Embed"][-1:]
    assert lines[0]["texts"] == 1
    assert lines[0]["tokens"] > 0
    assert lines[0]["duration_ms"] > 0
    for path in qwen_daemon.home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
