"""A call of one text does not wait for the work of others: none of its steps takes a turn, which needs an event loop."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

import pytest
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.openai.app import _encode
from runed.api.rpc.codecs import BatchWriter
from runed.api.rpc.decoding import take_over
from runed.api.rpc.intake import take_in
from runed.api.rpc.messages import embed_batch_response
from runed.domain.requests import EmbedAnswer, Embedding, VectorSpace
from tests.fakes.fake_host import vector_of
from tests.server.clients import envelope

ANSWER = EmbedAnswer(
    items=[Embedding(vector=vector_of("x", 4), tokens=3, total_tokens=3)], space=VectorSpace(fingerprint="fp", prompt="")
)


def at_once(make: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 # the result of any coroutine
    """Return the result of a coroutine that ends at its first step, without an event loop."""
    with pytest.raises(StopIteration) as end:
        next(iter(make().__await__()))
    return end.value.value


def test_its_message_is_read_at_once() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": envelope(pb.EmbedRequest(text="a")), "more_body": True}

    def read() -> None:
        scope = {"method": "POST", "headers": [(b"content-type", b"application/grpc")]}
        part = at_once(take_in(scope, receive, pb.EmbedRequest, 1000)[1])
        assert part["body"] == bytes(5)
        assert take_over() == pb.EmbedRequest(text="a")

    copy_context().run(read)


def test_its_answer_is_made_at_once() -> None:
    assert len(at_once(lambda: embed_batch_response(ANSWER)).embeddings) == 1


def test_its_answer_in_json_is_written_at_once() -> None:
    response = pb.EmbedBatchResponse(embeddings=[pb.EmbedResponse(vector=[0.5])])

    async def answer(_request: object, _context: object) -> pb.EmbedBatchResponse:
        return response

    method = MethodInfo(
        name="EmbedBatch",
        service_name="runed.v1.RunedService",
        input=pb.EmbedBatchRequest,
        output=pb.EmbedBatchResponse,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )
    context: RequestContext[Any, Any] = RequestContext(
        method=method, http_method="POST", request_headers=Headers({"content-type": "application/json"})
    )

    def write() -> None:
        assert at_once(lambda: BatchWriter().intercept_unary(answer, pb.EmbedBatchRequest(), context)) is response

    copy_context().run(write)


def test_its_answer_of_the_openai_api_is_written_at_once() -> None:
    assert len(json.loads(at_once(lambda: _encode(ANSWER, as_base64=False)))["data"]) == 1
