"""The encoding of messages."""

from __future__ import annotations

import json
import time
from contextvars import copy_context

import numpy as np
import pytest
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from google.protobuf.json_format import MessageToDict, Parse
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.error_codes import MalformedRequestError
from runed.api.rpc.codecs import BatchWriter, CompactJsonCodec

ONE = pb.EmbedResponse(vector=[0.1, -1e-30, 1 / 3, 0.0], token_count=3, fingerprint="fp", cached=True)
FAILED = pb.EmbedResponse(error=pb.ItemError(reason="EMPTY_TEXT", message='the "text" is empty', metadata={"index": "1"}))


@pytest.mark.parametrize(
    "message",
    [
        ONE,
        FAILED,
        pb.EmbedResponse(),
        pb.EmbedBatchResponse(embeddings=[ONE, FAILED, pb.EmbedResponse(), ONE], prompt="Query:"),
        pb.EmbedBatchResponse(embeddings=[FAILED]),
        pb.EmbedStreamResponse(
            results=[pb.EmbedStreamResult(id="a", embedding=FAILED), pb.EmbedStreamResult(id="b", embedding=ONE)]
        ),
        pb.HealthResponse(uptime_seconds=7),
    ],
)
def test_json_is_that_of_the_message(message: Message) -> None:
    before = message.SerializeToString()
    written = CompactJsonCodec().encode(message)
    assert b"\n" not in written
    again = Parse(written, type(message)())
    assert again == message
    assert MessageToDict(again) == MessageToDict(message)
    assert message.SerializeToString() == before


def test_a_large_batch_in_json_does_not_keep_others_waiting() -> None:
    vector = np.random.default_rng(1).normal(size=1024).astype("<f4")
    batch = pb.EmbedBatchResponse(embeddings=[pb.EmbedResponse(vector=vector)] * 512)
    began = time.process_time()
    CompactJsonCodec().encode(batch)
    assert time.process_time() - began < 0.4, "Google's runtime takes over a second"


@pytest.mark.parametrize(("field", "value"), [("role", "query"), ("truncate", "end"), ("lane", "BULK")])
def test_an_unknown_name_is_refused_and_not_taken_for_none(field: str, value: str) -> None:
    data = json.dumps({"text": "x", field: value}).encode()
    with pytest.raises(MalformedRequestError, match=f"{field} '{value}' is unknown.*_UNSPECIFIED"):
        CompactJsonCodec().decode(data, pb.EmbedRequest)


def test_known_names_numbers_and_unknown_fields_are_read() -> None:
    data = b'{"text": "x", "role": "ROLE_QUERY", "truncate": 2, "lane": null, "of_a_newer_client": 1}'
    assert CompactJsonCodec().decode(data, pb.EmbedRequest) == pb.EmbedRequest(
        text="x", role=pb.ROLE_QUERY, truncate=pb.TRUNCATE_END
    )


async def test_answer_that_was_written_ahead_is_not_kept() -> None:
    response = pb.EmbedBatchResponse(embeddings=[ONE])
    method: MethodInfo[Message, Message] = MethodInfo(
        name="EmbedBatch",
        service_name="runed.v1.RunedService",
        input=pb.EmbedBatchRequest,
        output=pb.EmbedBatchResponse,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )
    context = RequestContext(method=method, http_method="POST", request_headers=Headers({"content-type": "application/json"}))

    async def answer(request: Message, ctx: object) -> Message:
        return response

    await BatchWriter().intercept_unary(answer, pb.EmbedBatchRequest(), context)
    CompactJsonCodec().encode(response)
    assert not [value for value in copy_context().values() if isinstance(value, tuple) and response in value]
