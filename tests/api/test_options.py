"""The handlers' translation of options in requests and facts in answers, over every protocol."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.domain.requests import EmbedOptions, Lane, Role, Truncate
from tests.api.conftest import Served
from tests.fakes.fake_host import DIM, LOAD, MAX_TOKENS, vector_of
from tests.support import PROTOCOLS, Answer, Refusal

LONG = "word " * (MAX_TOKENS + 1)


def message_of(answer: Answer) -> Message:
    assert answer.refusal is None, answer.refusal
    assert answer.message is not None
    return answer.message


def refusal_of(answer: Answer) -> Refusal:
    assert answer.refusal is not None
    return answer.refusal


def floats(response: pb.EmbedResponse) -> bytes:
    return np.array(response.vector, dtype="<f4").tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_options_reach_the_host_and_facts_the_caller(protocol: str, served: Served) -> None:
    request = pb.EmbedRequest(
        text=LONG,
        lane=pb.LANE_BULK,
        role=pb.ROLE_QUERY,
        instruction="find it",
        dimensions=5,
        truncate=pb.TRUNCATE_END,
    )
    response = cast("pb.EmbedResponse", message_of(await served.call(protocol, "Embed", request)))
    [asked] = served.host.asked
    assert asked.texts == [LONG]
    assert asked.options == EmbedOptions(
        lane=Lane.BULK, role=Role.QUERY, instruction="find it", dimensions=5, truncate=Truncate.END
    )
    assert asked.client == "unix:1"
    assert floats(response) == vector_of(LONG, 5)
    assert (response.token_count, response.total_token_count, response.truncated) == (MAX_TOKENS, MAX_TOKENS + 3, True)
    assert (response.fingerprint, response.prompt, response.cached) == ("fp", "query:find it", False)
    assert not response.HasField("error")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_grace_below_0_is_refused(protocol: str, served: Served) -> None:
    for grace in (-1, -(2**31)):
        refused = refusal_of(await served.call(protocol, "Shutdown", pb.ShutdownRequest(grace_seconds=grace)))
        assert refused.reason == "INVALID_REQUEST"
        assert f"grace_seconds is {grace}; accepted is a whole number of seconds from 0" in refused.message
    assert served.host.grace is None
    message_of(await served.call(protocol, "Shutdown", pb.ShutdownRequest(grace_seconds=7)))
    assert served.host.grace == 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_plain_request_has_the_options_of_old(protocol: str, served: Served) -> None:
    response = cast("pb.EmbedResponse", message_of(await served.call(protocol, "Embed", pb.EmbedRequest(text="cached one"))))
    assert served.host.asked[0].options == EmbedOptions()
    assert floats(response) == vector_of("cached one", DIM)
    assert (response.token_count, response.total_token_count, response.truncated) == (4, 4, False)
    assert response.cached


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_batch_tells_what_is_common_once_and_errors_by_the_item(protocol: str, served: Served) -> None:
    texts = ["one", "", "cached two", "fail:BACKEND_FAULT", LONG]
    request = pb.EmbedBatchRequest(texts=texts, per_item_errors=True, lane=pb.LANE_INTERACTIVE, role=pb.ROLE_DOCUMENT)
    response = cast("pb.EmbedBatchResponse", message_of(await served.call(protocol, "EmbedBatch", request)))
    [asked] = served.host.asked
    assert asked.per_item_errors
    assert (asked.options.lane, asked.options.role) == (Lane.INTERACTIVE, Role.DOCUMENT)
    assert response.fingerprint == "fp"
    assert not any(item.fingerprint or item.prompt for item in response.embeddings)
    errors = [item.error.reason for item in response.embeddings]
    assert errors == ["", "EMPTY_TEXT", "", "BACKEND_FAULT", "TEXT_TOO_LONG"]
    assert [item.cached for item in response.embeddings] == [False, False, True, False, False]
    assert floats(response.embeddings[0]) == vector_of("one")
    too_long = response.embeddings[4]
    assert not too_long.vector
    assert dict(too_long.error.metadata) == {"tokens": str(MAX_TOKENS + 3), "limit": str(MAX_TOKENS)}
    assert too_long.error.message == "too long"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_batch_without_item_errors_fails_whole(protocol: str, served: Served) -> None:
    refusal = refusal_of(await served.call(protocol, "EmbedBatch", pb.EmbedBatchRequest(texts=["one", ""])))
    assert (refusal.code, refusal.reason) == ("invalid_argument", "EMPTY_TEXT")


UNKNOWN: dict[str, tuple[str, Message, str]] = {
    "lane": ("Embed", pb.EmbedRequest(text="x", lane=cast("pb.Lane", 7)), "LANE_BULK (2)"),
    "role": ("Embed", pb.EmbedRequest(text="x", role=cast("pb.Role", -7)), "ROLE_QUERY (1)"),
    "truncate": ("EmbedBatch", pb.EmbedBatchRequest(texts=["x"], truncate=cast("pb.Truncate", 7)), "TRUNCATE_START (3)"),
    "role of CountTokens": ("CountTokens", pb.CountTokensRequest(texts=["x"], role=cast("pb.Role", 7)), "ROLE_DOCUMENT (2)"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", UNKNOWN)
async def test_unknown_numbers_are_refused(protocol: str, case: str, served: Served) -> None:
    method, request, known = UNKNOWN[case]
    refusal = refusal_of(await served.call(protocol, method, request))
    assert (refusal.code, refusal.reason) == ("invalid_argument", "INVALID_REQUEST")
    assert known in refusal.message
    assert refusal.metadata["field"] == case.split(maxsplit=1)[0]
    assert refusal.metadata["value"] in {"7", "-7"}
    assert not served.host.asked


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_tokens_are_counted(protocol: str, served: Served) -> None:
    request = pb.CountTokensRequest(texts=["one two", "three"], role=pb.ROLE_QUERY, instruction="find it")
    response = cast("pb.CountTokensResponse", message_of(await served.call(protocol, "CountTokens", request)))
    assert list(response.token_counts) == [4, 3]
    assert response.max_text_length == MAX_TOKENS
    assert served.host.asked[0].options == EmbedOptions(role=Role.QUERY, instruction="find it")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("QUEUE_FULL", "resource_exhausted"),
        ("BAD_DIMENSIONS", "invalid_argument"),
        ("BAD_INSTRUCTION", "invalid_argument"),
        ("BACKEND_UNAVAILABLE", "unavailable"),
    ],
)
async def test_refusals_keep_their_code_reason_facts_and_delay(protocol: str, reason: str, code: str, served: Served) -> None:
    refusal = refusal_of(await served.call(protocol, "Embed", pb.EmbedRequest(text=f"fail:{reason}")))
    assert (refusal.code, refusal.reason) == (code, reason)
    assert refusal.metadata == {"limit_texts": "7"}
    assert refusal.retry_seconds == 1.5


async def test_info_tells_all(served: Served) -> None:
    info = cast("pb.InfoResponse", message_of(await served.call("grpc", "Info", pb.InfoRequest())))
    assert info == pb.InfoResponse(
        daemon_version="1.2.3",
        model_identity="sha256:1",
        vector_dim=DIM,
        max_text_length=MAX_TOKENS,
        max_batch_size=2048,
        model_name="fake",
        model_variant="fake.f32",
        pooling="mean",
        engine_version="b1",
        max_request_bytes=4 * 1024 * 1024,
        socket_path="/s",
        fingerprint="fp",
        min_dimensions=4,
        query_prompt="Q: {instruction} ",
        document_prompt="D: ",
        default_instruction="find",
        profile="balanced",
        max_queued_texts=17,
        max_queued_bytes=18,
        restrictions=["nice 3"],
        accelerator="vulkan",
        device="fake device",
        device_tuned_at="2026-11-27T12:00:00+00:00",
        company_cosine=0.75,
        tuned_at="2026-11-28T12:00:00+00:00",
        model="fake.f32",
    )


async def test_health_tells_the_load_once_there_is_an_engine(served: Served) -> None:
    before = cast("pb.HealthResponse", message_of(await served.call("grpc", "Health", pb.HealthRequest())))
    assert (before.status, before.engine_restarts) == (pb.HealthResponse.STATUS_OK, 4)
    assert not before.HasField("bulk")
    served.host.load = LOAD
    health = cast("pb.HealthResponse", message_of(await served.call("grpc", "Health", pb.HealthRequest())))
    expected = pb.HealthResponse()
    expected.CopyFrom(before)
    expected.MergeFrom(
        pb.HealthResponse(
            interactive=pb.LaneHealth(
                queued_texts=11, queued_bytes=12, total_texts=9, wait_p50_seconds=0.25, wait_p99_seconds=0.5
            ),
            bulk=pb.LaneHealth(queued_texts=13, queued_bytes=14, total_texts=10, wait_p50_seconds=0.75, wait_p99_seconds=1.5),
            total_texts=1,
            total_tokens=2,
            tokens_per_second=3.5,
            total_batches=4,
            mean_batch_texts=5.5,
            cache_hits=6,
            shared_texts=7,
            cache_entries=15,
            cache_bytes=16,
            refused_requests=8,
            disk_cache_bytes=17,
        )
    )
    assert health == expected


async def test_callers_are_told_apart_by_connection(served: Served) -> None:
    for _ in range(2):
        await served.call("connect+json", "Embed", pb.EmbedRequest(text="x"))
    assert len({asked.client for asked in served.host.asked}) == 2
