"""The reading of messages: strict where a request could be taken for another one, and bounded in time and memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.error_codes import MalformedRequestError
from runed.api.json_body import read_json
from runed.api.large import MANY_BYTES, MOST_PARTS
from runed.api.rpc.decoding import decode
from runed.api.rpc.inflating import inflate
from runed.errors import BatchTooLargeError, RequestTooLargeError, RunedError
from tests.api.conftest import Served
from tests.api.streams import StreamClient
from tests.server.clients import SERVICE
from tests.support import RunningDaemon, http_over, refusal_of_json

OPENAI = "/v1/embeddings"
BOM = b"\xef\xbb\xbf"

# JSON that is refused, in both faces

FAULTS: dict[str, tuple[bytes, str]] = {
    "a name twice": (b'{"%b": "x", "%b": "x"}', "same name twice"),
    "an unknown name twice": (b'{"%b": "x", "a": {"b": 1, "b": 2}}', "same name twice"),
    "NaN": (b'{"%b": "x", "dimensions": NaN}', "it has NaN"),
    "infinity": (b'{"%b": "x", "a": [Infinity]}', "it has Infinity"),
    "minus infinity": (b'{"%b": "x", "a": -Infinity}', "it has -Infinity"),
    "no UTF-8": (b'{"%b": "x\xff"}', "is not UTF-8"),
    "an overlong slash": (b'{"%b": "x\xc0\xaf"}', "is not UTF-8"),
    "half a surrogate pair in UTF-8": (b'{"%b": "x\xed\xa0\x80"}', "is not UTF-8"),
    "a cut character": (b'{"%b": "x\xe2\x82"}', "is not UTF-8"),
    "UTF-16": ('{"%b": "x"}'.encode("utf-16"), "is not UTF-8"),
    "two byte order marks": (BOM + BOM + b'{"%b": "x"}', "expecting value"),
    "a line break in a string": (b'{"%b": "x\ny"}', "invalid control character"),
    "a comma at the end": (b'{"%b": "x",}', "at character"),
    "single quotes": (b"{'%b': 'x'}", "at character"),
    "a number of 5,000 digits": (b'{"%b": "x", "dimensions": ' + b"1" * 5000 + b"}", "too many digits"),
    "brackets without end": (b'{"%b": "x", "a": ' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_json_that_could_be_misread_is_refused_alike(case: str, served: Served) -> None:
    body, words = FAULTS[case]
    headers = {"content-type": "application/json"}
    with http_over(served.path) as http:
        connect = await _post(http, f"{SERVICE}/Embed", body.replace(b"%b", b"text"), headers)
        openai = await _post(http, OPENAI, body.replace(b"%b", b"input"), headers)
    assert connect.status_code == openai.status_code == 400
    refusal = refusal_of_json(connect.json())
    error = openai.json()["error"]
    assert refusal.reason == error["code"] == "MALFORMED_REQUEST"
    assert words in refusal.message
    assert words in error["message"]
    assert served.host.asked == []


@pytest.mark.parametrize("body", [BOM + b'{"%b": "x"}', b' \r\n\t{"%b": "x", "a": {"a": [1e999, null]}}\n'])
async def test_json_with_a_byte_order_mark_or_space_is_read(body: bytes, served: Served) -> None:
    headers = {"content-type": "application/json"}
    with http_over(served.path) as http:
        connect = await _post(http, f"{SERVICE}/Embed", body.replace(b"%b", b"text"), headers)
        openai = await _post(http, OPENAI, body.replace(b"%b", b"input"), headers)
    assert (connect.status_code, openai.status_code) == (200, 200)
    assert [asked.texts for asked in served.host.asked] == [["x"], ["x"]]


def test_both_spellings_of_a_field_are_that_field_twice() -> None:
    with pytest.raises(MalformedRequestError, match="field per_item_errors twice"):
        decode(b'{"texts": ["x"], "perItemErrors": true, "per_item_errors": false}', pb.EmbedBatchRequest, "json")
    with pytest.raises(MalformedRequestError, match="oneof payload"):
        decode(b'{"header": {}, "batch": {}}', pb.SetCentroidsRequest, "json")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (pb.EmbedStreamRequest, b'{"items": [{"id": "1", "text": "x"}, {"text": "y"}, {}], "dimensions": "32", "role": 1}'),
        (pb.SetCentroidsRequest, b'{"batch": {"centroids": [{"id": 1, "vec": [0.5, "NaN", 1e-9]}, {}]}}'),
        (pb.SetCentroidsRequest, b'{"header": {"version": "v", "dim": 3, "nlist": null, "ofTomorrow": {"a": []}}}'),
        (pb.EmbedBatchRequest, b'{"texts": ["x", "\\ud83d\\ude00"], "perItemErrors": true, "lane": "LANE_BULK"}'),
        (pb.EmbedRequest, b'{"text": null, "with_route": true}'),
    ],
)
def test_json_is_read_as_googles_runtime_reads_it(kind: type[Message], body: bytes) -> None:
    assert str(decode(body, kind, "json").message) == str(Parse(body, kind(), ignore_unknown_fields=True))


# Half of a surrogate pair concerns its text alone


def test_a_broken_text_of_a_batch_is_named(qwen_daemon: RunningDaemon) -> None:
    body = b'{"texts": ["fine", "so \\ud800", "fine"]%b}'
    headers = {"content-type": "application/json"}
    with qwen_daemon.http() as http:
        whole = http.post(f"{SERVICE}/EmbedBatch", content=body.replace(b"%b", b""), headers=headers)
        counted = http.post(f"{SERVICE}/CountTokens", content=body.replace(b"%b", b""), headers=headers)
        each = http.post(f"{SERVICE}/EmbedBatch", content=body.replace(b"%b", b', "perItemErrors": true'), headers=headers)
        openai = http.post(OPENAI, content=body.replace(b"%b", b"").replace(b"texts", b"input"), headers=headers)
    for response in (whole, counted):
        refusal = refusal_of_json(response.json())
        assert (refusal.reason, refusal.metadata) == ("INVALID_TEXT", {"index": "1", "position": "3"})
    outcomes = each.json()["embeddings"]
    assert [outcome.get("error", {}).get("reason") for outcome in outcomes] == [None, "INVALID_TEXT", None]
    assert outcomes[1]["error"]["metadata"]["index"] == "1"
    assert outcomes[0]["vector"] == outcomes[2]["vector"]
    assert openai.json()["error"]["code"] == "INVALID_TEXT"
    assert "text 1 of the batch" in openai.json()["error"]["message"]


def test_a_text_of_too_many_characters_is_refused_before_it_is_counted(qwen_daemon: RunningDaemon) -> None:
    most = 4 * 1024 * 1024
    answer = qwen_daemon.call("EmbedBatch", {"texts": ["fine", " " * (most + 1)], "perItemErrors": True})
    error = answer["embeddings"][1]["error"]
    assert error["reason"] == "TEXT_TOO_LONG"
    assert error["metadata"] == {"index": "1", "characters": str(most + 1), "character_limit": str(most)}
    assert "vector" in answer["embeddings"][0]
    counted = qwen_daemon.call("CountTokens", {"texts": ["x" * (most + 1)]})
    assert refusal_of_json(counted).reason == "TEXT_TOO_LONG"


async def test_a_broken_text_of_a_stream_is_refused_in_its_result(served: Served) -> None:
    body = b'{"items": [{"id": "1", "text": "x"}, {"id": "2", "text": "\\ud800"}]}'
    async with await StreamClient.open(served.path, "connect+json") as stream:
        stream.client.h2.send_data(stream.stream_id, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        await stream.client.over(stream.stream_id)
    size = int.from_bytes(stream.exchange.body[1:5], "big")
    results = json.loads(stream.exchange.body[5 : 5 + size])["results"]
    assert [result["embedding"].get("error", {}).get("reason") for result in results] == [None, "INVALID_TEXT"]


@pytest.mark.parametrize("field", ["instruction", "id"])
def test_a_broken_string_that_is_no_text_is_named(field: str) -> None:
    body = {"instruction": b'{"instruction": "\\udc00"}', "id": b'{"items": [{"id": "\\udc00"}]}'}[field]
    with pytest.raises(MalformedRequestError, match=f"{field} has half of a surrogate pair at character 0"):
        decode(body, pb.EmbedStreamRequest, "json")


async def test_a_broken_instruction_of_openai_is_named(served: Served) -> None:
    with http_over(served.path) as http:
        body = b'{"input": "x", "instruction": "\\udc00"}'
        error = (await _post(http, OPENAI, body, {"content-type": "application/json"})).json()["error"]
    assert (error["code"], error["param"]) == ("MALFORMED_REQUEST", "instruction")


# Large messages


TOO_MANY: dict[str, tuple[type[Message], str, bytes, type[RunedError]]] = {
    "texts": (pb.EmbedBatchRequest, "proto", b"\x0a\x00" * (MOST_PARTS + 1), BatchTooLargeError),
    "texts in JSON": (pb.EmbedBatchRequest, "json", b'{"texts":["' + b'","' * MOST_PARTS + b'"]}', BatchTooLargeError),
    "unknown fields": (pb.EmbedRequest, "proto", b"\xf8\x06\x01" * (MOST_PARTS + 1), RequestTooLargeError),
    "groups": (pb.EmbedRequest, "proto", b"\xfb\x06\xfc\x06" * MOST_PARTS, RequestTooLargeError),
    "options": (pb.EmbedRequest, "proto", b"\x80\x01\x01" * (MOST_PARTS + 1), RequestTooLargeError),
    "items": (pb.EmbedStreamRequest, "proto", b"\x0a\x00" * (MOST_PARTS + 1), RequestTooLargeError),
    "fields of an item": (
        pb.EmbedStreamRequest,
        "proto",
        b"\x0a" + b"\xff\xff\xff\x01" + b"\xf8\x06\x01" * (MOST_PARTS + 1),
        RequestTooLargeError,
    ),
    "unknown names": (pb.EmbedRequest, "json", b'{"a":0' + b',"a":0' * MOST_PARTS + b"}", RequestTooLargeError),
    "unknown numbers": (pb.EmbedRequest, "json", b'{"a":[0' + b",0" * MOST_PARTS + b"]}", RequestTooLargeError),
    "unknown lists": (pb.EmbedRequest, "json", b'{"a":[[]' + b",[]" * MOST_PARTS + b"]}", RequestTooLargeError),
    "escapes and values": (
        pb.EmbedRequest,
        "json",
        b'{"a":["' + b'\\"\\\\' * 10_000 + b'"' + b",0" * MOST_PARTS + b"]}",
        RequestTooLargeError,
    ),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_too_many_parts_are_refused_before_they_are_made(case: str) -> None:
    kind, codec, body, error = TOO_MANY[case]
    for _ in range(3):  # other work on the machine slows a single try down
        started = time.thread_time()
        with pytest.raises(error, match=f"more than {MOST_PARTS:,} texts, values and other parts"):
            decode(body, kind, codec)
        if time.thread_time() - started < 2:
            break
    else:
        pytest.fail("no try took less than 2 s")


@pytest.mark.parametrize("codec", ["proto", "json"])
def test_a_large_text_of_any_content_is_not_taken_for_many_parts(codec: str) -> None:
    text = 'a, "b" [{\\, ' * 200_000 + "\x01"
    body = pb.EmbedRequest(text=text).SerializeToString() if codec == "proto" else json.dumps({"text": text}).encode()
    assert len(body) > MANY_BYTES
    assert decode(body, pb.EmbedRequest, codec).message == pb.EmbedRequest(text=text)


@pytest.mark.parametrize("cut", [b'{"text": "' + b"x" * MANY_BYTES, b'{"text": "' + b"x" * MANY_BYTES + b"\\"])
def test_a_large_text_without_end_is_no_json(cut: bytes) -> None:
    with pytest.raises(MalformedRequestError, match="not valid JSON"):
        read_json(cut)


def test_large_protobuf_that_is_cut_off_is_malformed() -> None:
    body = pb.EmbedRequest(text="x" * MANY_BYTES, dimensions=300).SerializeToString()
    for end in (len(body) - 1, MANY_BYTES + 1):
        with pytest.raises(MalformedRequestError, match="no EmbedRequest"):
            decode(body[:end], pb.EmbedRequest, "proto")


@pytest.mark.parametrize("protocol", ["connect+proto", "connect+json", "grpc", "grpc-web"])
async def test_large_messages_come_through_every_protocol(protocol: str, served: Served) -> None:
    texts = [f"text {number}" + " " * 100 for number in range(2000)]
    request = pb.EmbedBatchRequest(texts=texts, per_item_errors=True)
    answer = await served.call(protocol, "EmbedBatch", request)
    assert isinstance(answer.message, pb.EmbedBatchResponse)
    assert len(answer.message.embeddings) == 2000
    assert served.host.asked[0].texts == texts


# Compression


def test_gzip_of_several_members_is_read() -> None:
    data = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two" * 10_000)
    assert inflate(data, 100_000) == b"one " + b"two" * 10_000


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (lambda: gzip.compress(b"") * 200_000, MalformedRequestError),
        (lambda: gzip.compress(b" ") * 200_000, MalformedRequestError),
        (lambda: gzip.compress(bytes(100_001)), RequestTooLargeError),
        (lambda: gzip.compress(b"x" * 1000)[:-1], MalformedRequestError),
        (lambda: gzip.compress(b"x") + b"y", MalformedRequestError),
        (lambda: b"", MalformedRequestError),
    ],
    ids=["empty members", "tiny members", "bomb", "cut", "rest", "nothing"],
)
def test_gzip_that_costs_too_much_or_is_none_is_refused(data: Callable[[], bytes], error: type[RunedError]) -> None:
    body = data()
    started = time.process_time()
    with pytest.raises(error):
        inflate(body, 100_000)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("kind", ["application/json", "application/grpc-web+json"])
async def test_compressed_requests_are_read_and_answers_are_not_compressed(kind: str, served: Served) -> None:
    message = gzip.compress(json.dumps({"texts": ["x"] * 2000}).encode())
    headers = {"content-type": kind, "accept-encoding": "gzip", "grpc-accept-encoding": "gzip"}
    if kind == "application/json":
        headers["content-encoding"] = "gzip"
    else:
        headers["grpc-encoding"] = "gzip"
        message = struct.pack(">BI", 1, len(message)) + message
    with http_over(served.path) as http:
        response = await _post(http, f"{SERVICE}/EmbedBatch", message, headers)
    assert response.headers.get("content-encoding", "identity") == "identity"
    assert response.content.count(b"tokenCount") == 2000


async def _post(http: Any, path: str, body: bytes, headers: dict[str, str]) -> Any:  # noqa: ANN401 # httpx is not async here
    return await asyncio.to_thread(http.post, path, content=body, headers=headers)
