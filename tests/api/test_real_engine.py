"""The options, streams and numbers of the contract on the whole daemon, with real models."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import cast

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from numpy.typing import NDArray
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.api.streams import CONTENT_TYPES, PATH, StreamClient, request
from tests.api.test_golden import CASES
from tests.server.test_http1 import head
from tests.support import GRPC_OPTIONS, PROTOCOLS, Answer, Golden, Refusal, RunningDaemon, call, wait_until


def ask(daemon: RunningDaemon, method: str, request: Message, *, protocol: str = "grpc") -> Message:
    answer = call(protocol, daemon.socket, method, request)
    assert answer.message is not None, answer.refusal
    return answer.message


def embed(daemon: RunningDaemon, text: str, **options: object) -> pb.EmbedResponse:
    request = pb.EmbedRequest(text=text, **options)  # type: ignore[arg-type] # each test gives what the field takes
    return cast("pb.EmbedResponse", ask(daemon, "Embed", request))


def refuse(daemon: RunningDaemon, **options: object) -> Refusal:
    request = pb.EmbedRequest(text="some text", **options)  # type: ignore[arg-type] # as above
    refusal = call("grpc", daemon.socket, "Embed", request).refusal
    assert refusal is not None
    return refusal


def info_of(daemon: RunningDaemon) -> pb.InfoResponse:
    return cast("pb.InfoResponse", ask(daemon, "Info", pb.InfoRequest()))


def health_of(daemon: RunningDaemon) -> pb.HealthResponse:
    return cast("pb.HealthResponse", ask(daemon, "Health", pb.HealthRequest()))


def array(response: pb.EmbedResponse) -> NDArray[np.float32]:
    return np.array(response.vector, dtype=np.float32)


@pytest.mark.parametrize("protocol", CONTENT_TYPES)
@pytest.mark.parametrize(("daemon_name", "golden_name"), CASES)
async def test_streamed_vectors_and_tokens_agree_with_the_reference(
    request: pytest.FixtureRequest, protocol: str, daemon_name: str, golden_name: str
) -> None:
    daemon: RunningDaemon = request.getfixturevalue(daemon_name)
    golden: Golden = request.getfixturevalue(golden_name)
    items = [pb.EmbedStreamItem(id=str(number), text=text) for number, text in enumerate(golden.texts)]
    async with await StreamClient.open(daemon.socket, protocol) as stream:
        await stream.send(pb.EmbedStreamRequest(items=items[:1]))
        await stream.results(1)
        await stream.send(*(pb.EmbedStreamRequest(items=[item]) for item in items[1:]), end=True)
        assert await stream.outcome(within=20) is None
        results = await stream.results(len(items))
    assert sorted(results) == sorted(item.id for item in items)
    assert golden.cosines(np.array([array(results[item.id]) for item in items])).min() >= 0.9999
    assert [results[item.id].token_count for item in items] == golden.tokens
    assert {message.fingerprint for message in stream.messages()} == {info_of(daemon).fingerprint}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("daemon_name", "golden_name"), CASES)
def test_counted_tokens_agree_with_the_reference(
    request: pytest.FixtureRequest, protocol: str, daemon_name: str, golden_name: str
) -> None:
    daemon: RunningDaemon = request.getfixturevalue(daemon_name)
    golden: Golden = request.getfixturevalue(golden_name)
    counts = cast(
        "pb.CountTokensResponse",
        ask(daemon, "CountTokens", pb.CountTokensRequest(texts=golden.texts), protocol=protocol),
    )
    assert list(counts.token_counts) == golden.tokens
    assert counts.max_text_length == info_of(daemon).max_text_length
    batch = cast(
        "pb.EmbedBatchResponse", ask(daemon, "EmbedBatch", pb.EmbedBatchRequest(texts=golden.texts), protocol=protocol)
    )
    assert [item.token_count for item in batch.embeddings] == golden.tokens
    assert [item.total_token_count for item in batch.embeddings] == golden.tokens


def test_role_and_instruction_stand_before_the_text(qwen_daemon: RunningDaemon) -> None:
    info = info_of(qwen_daemon)
    prompt = info.query_prompt.replace("{instruction}", "Find what hurts")
    response = embed(qwen_daemon, "a thorn", role=pb.ROLE_QUERY, instruction="Find what hurts")
    assert response.prompt == prompt
    written_out = embed(qwen_daemon, prompt + "a thorn")
    assert np.allclose(array(response), array(written_out), atol=1e-5)
    assert response.token_count == written_out.token_count
    counts = cast(
        "pb.CountTokensResponse",
        ask(
            qwen_daemon,
            "CountTokens",
            pb.CountTokensRequest(texts=["a thorn"], role=pb.ROLE_QUERY, instruction="Find what hurts"),
        ),
    )
    assert list(counts.token_counts) == [response.token_count]
    default = embed(qwen_daemon, "a thorn", role=pb.ROLE_QUERY).prompt
    assert default == info.query_prompt.replace("{instruction}", info.default_instruction)


def test_instruction_that_cannot_be_used_is_refused(qwen_daemon: RunningDaemon, minilm_daemon: RunningDaemon) -> None:
    assert refuse(qwen_daemon, instruction="Find").reason == "BAD_INSTRUCTION"
    assert refuse(minilm_daemon, role=pb.ROLE_QUERY, instruction="Find").reason == "BAD_INSTRUCTION"


def test_fewer_dimensions_are_a_space_of_their_own(qwen_daemon: RunningDaemon, minilm_daemon: RunningDaemon) -> None:
    whole, half = embed(qwen_daemon, "some text"), embed(qwen_daemon, "some text", dimensions=32)
    expected = array(whole)[:32] / np.linalg.norm(array(whole)[:32])
    assert np.allclose(array(half), expected, atol=1e-6)
    assert whole.fingerprint == info_of(qwen_daemon).fingerprint != half.fingerprint
    too_few = refuse(qwen_daemon, dimensions=31)
    assert (too_few.reason, too_few.metadata) == ("BAD_DIMENSIONS", {"dimensions": "31", "min": "32", "max": "64"})
    assert refuse(minilm_daemon, dimensions=100).metadata["min"] == "384"


def test_truncated_text_is_that_part_of_it(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_CTX_SIZE="128")
    daemon.wait_for("STATUS_OK")
    limit = info_of(daemon).max_text_length
    text = "1" * limit + "2" * limit  # a token each, and one more at the end
    for truncate, part in ((pb.TRUNCATE_END, "1" * (limit - 1)), (pb.TRUNCATE_START, "2" * (limit - 1))):
        cut = embed(daemon, text, truncate=truncate)
        assert (cut.token_count, cut.total_token_count, cut.truncated) == (limit, 2 * limit + 1, True)
        assert np.allclose(array(cut), array(embed(daemon, part)), atol=1e-5)


def test_full_queue_refuses_at_once_and_says_when_to_come_again(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_QUEUE_TEXTS="64")
    daemon.wait_for("STATUS_OK")
    info = info_of(daemon)
    assert info.max_queued_texts == 64

    def send(number: int) -> Answer:
        texts = [f"{number} {n} {'text ' * 30}" for n in range(40)]
        return call("connect+proto", daemon.socket, "EmbedBatch", pb.EmbedBatchRequest(texts=texts))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    refusals = [answer.refusal for answer in answers if answer.refusal is not None]
    assert 1 <= len(refusals) <= 5
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == ("resource_exhausted", "QUEUE_FULL")
        assert refusal.retry_seconds
        assert refusal.metadata["limit_texts"].isdigit()
    assert health_of(daemon).refused_requests == len(refusals)


@pytest.mark.slow
def test_refusal_for_want_of_memory_is_counted(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_REQUEST_MEMORY="128MiB")
    daemon.wait_for("STATUS_OK")
    with ExitStack() as stack:
        for _ in range(8):  # 12 MiB take 16 with what grows, and 112 are for large requests
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(daemon.socket))
            client.sendall(head(bytes(12 * 1024 * 1024))[:-1])
        wait_until(lambda: health_of(daemon).refused_requests > 0, what="the refusal of the oldest")


def test_bad_item_leaves_the_others_alone(qwen_daemon: RunningDaemon) -> None:
    limit = info_of(qwen_daemon).max_text_length
    texts = ["fine", "", "7" * limit, "also fine"]
    request = pb.EmbedBatchRequest(texts=texts, per_item_errors=True)
    batch = cast("pb.EmbedBatchResponse", ask(qwen_daemon, "EmbedBatch", request))
    assert [item.error.reason for item in batch.embeddings] == ["", "EMPTY_TEXT", "TEXT_TOO_LONG", ""]
    assert [len(item.vector) for item in batch.embeddings] == [64, 0, 0, 64]
    assert batch.embeddings[2].error.metadata["tokens"] == str(limit + 1)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\x01", "\ue000", "[SEP]"])
def test_text_of_which_the_model_reads_nothing_is_empty_in_every_protocol(minilm_daemon: RunningDaemon, text: str) -> None:
    for protocol in PROTOCOLS:
        for message in (pb.EmbedRequest(text=text), pb.EmbedBatchRequest(texts=["fine", text])):
            method = type(message).__name__.removesuffix("Request")
            refusal = call(protocol, minilm_daemon.socket, method, message).refusal
            assert refusal is not None
            assert (refusal.code, refusal.reason) == ("invalid_argument", "EMPTY_TEXT")
    items = pb.EmbedBatchRequest(texts=["fine", text], per_item_errors=True)
    batch = cast("pb.EmbedBatchResponse", ask(minilm_daemon, "EmbedBatch", items))
    assert [item.error.reason for item in batch.embeddings] == ["", "EMPTY_TEXT"]
    with minilm_daemon.http() as http:
        for body in (text, ["fine", text]):
            response = http.post("/v1/embeddings", json={"input": body})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "EMPTY_TEXT")


def test_repeated_text_is_told_to_be_cached_and_counted(qwen_daemon: RunningDaemon) -> None:
    before = health_of(qwen_daemon)
    assert not embed(qwen_daemon, "said twice").cached
    assert embed(qwen_daemon, "said twice").cached
    after = health_of(qwen_daemon)
    assert after.cache_hits == before.cache_hits + 1
    assert after.total_texts == before.total_texts + 2
    assert after.interactive.total_texts == before.interactive.total_texts + 1
    assert after.cache_bytes > before.cache_bytes
    with qwen_daemon.http() as http:
        lines = http.get("/metrics").text.splitlines()
    assert f"runed_cache_hits_total {after.cache_hits}.0" in lines


def texts_without_end() -> AsyncIterator[pb.EmbedStreamRequest]:
    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(1000):
            yield request(*(f"endless {number} {n} {'text ' * 20}" for n in range(100)))

    return requests()


async def test_cancelled_stream_leaves_no_work_behind(qwen_daemon: RunningDaemon) -> None:
    async with grpc.aio.insecure_channel(f"unix:{qwen_daemon.socket}", options=GRPC_OPTIONS) as channel:
        method = channel.stream_stream(
            PATH,
            request_serializer=pb.EmbedStreamRequest.SerializeToString,
            response_deserializer=pb.EmbedStreamResponse.FromString,
        )
        call = method(texts_without_end())
        await anext(aiter(call))
        busy = await asyncio.to_thread(health_of, qwen_daemon)
        assert busy.in_flight_requests == 1
        call.cancel()

        def quiet() -> bool:
            health = health_of(qwen_daemon)
            return health.in_flight_requests == 0 and health.bulk.queued_texts == 0

        await asyncio.to_thread(wait_until, quiet, timeout=2)
    batches = health_of(qwen_daemon).total_batches
    embed(qwen_daemon, "what comes next")
    assert health_of(qwen_daemon).total_batches <= batches + 2  # the one in flight, and this text's own


async def test_stream_without_a_reader_is_held_back(qwen_daemon: RunningDaemon) -> None:
    process = psutil.Process(int(qwen_daemon.health()["pid"]))
    window = {4: 1000}
    async with await StreamClient.open(qwen_daemon.socket, settings=window, takes_bodies=False) as stream:
        await stream.send(request("a first one"))
        before = process.memory_info().rss
        sent = 0

        def room_for_more() -> bool:
            return stream.client.h2.local_flow_control_window(stream.stream_id) > 32 * 1024

        async with asyncio.timeout(20):
            while await stream.client.until(room_for_more, within=2):
                await stream.send(request(*(f"held back {sent} {n} {'text ' * 50}" for n in range(50))))
                sent += 50
        assert 100 <= sent < 5000
        assert process.memory_info().rss - before < 16 * 1024 * 1024
