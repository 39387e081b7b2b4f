"""The codecs of messages. `decoding` reads requests. Google's runtime writes answers, `float_json` their vectors in JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec
from connectrpc.request import RequestContext
from google.protobuf.json_format import MessageToDict, MessageToJson
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.rpc.decoding import decode, take_over
from runed.float_json import write_floats
from runed.turns import breathe_before

M = TypeVar("M", bound=Message)

_JSON = "json"

_written: ContextVar[tuple[Message, bytes] | None] = ContextVar("runed_written", default=None)
"""The answer of the current task in JSON, and the message that it was made of."""


class _Codec:
    """A codec whose messages were usually read by `Intake` before: in the thread, if they are large."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """Return the name that the content type carries."""
        return self._name

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        """Return the message that `Intake` has read. Read the data if there is none, as in a GET.

        Raises:
            MalformedRequestError: This is no such message.
        """
        message = take_over() or decode(bytes(data), message_class, self._name).message
        assert isinstance(message, message_class)
        return message


class BinaryCodec(_Codec):
    """The protobuf encoding."""

    def __init__(self) -> None:
        super().__init__("proto")

    def encode(self, message: Message) -> bytes:
        """Write a message."""
        return message.SerializeToString()


class CompactJsonCodec(_Codec):
    """JSON, compact and quick.

    A message is one line: otherwise a vector of 1,024 values has 1,024 lines. Google's runtime takes 2 microseconds or more for
    each value.
    """

    def __init__(self) -> None:
        super().__init__(_JSON)

    def encode(self, message: Message) -> bytes:
        """Write a message."""
        written = _written.get()
        if written is not None and written[0] is message:
            _written.set(None)  # a timer that is set for the sending would keep the answer in its context for a minute
            return written[1]
        match message:
            case pb.EmbedResponse():
                return _embedding(message)
            case pb.EmbedBatchResponse():
                return _batch(message, [msgspec.Raw(_embedding(embedding)) for embedding in message.embeddings])
            case pb.EmbedStreamResponse():
                results = [{"id": it.id, "embedding": msgspec.Raw(_embedding(it.embedding))} for it in message.results]
                return _with_list(message, "results", results)
        return MessageToJson(message, indent=None).encode()


class BatchWriter:
    """An interceptor that writes large answers in JSON piece by piece, since a codec keeps the event loop to its end."""

    async def intercept_unary(
        self, call_next: Callable[[Any, Any], Awaitable[Any]], request: Message, ctx: RequestContext[Any, Any], /
    ) -> Message:
        """Answer a call."""
        response: Message = await call_next(request, ctx)
        if isinstance(response, pb.EmbedBatchResponse) and _JSON in ctx.request_headers.get("content-type", ""):
            embeddings = []
            for index, embedding in enumerate(response.embeddings):
                await breathe_before(index)
                embeddings.append(msgspec.Raw(_embedding(embedding)))
            _written.set((response, _batch(response, embeddings)))
        return response


def _embedding(embedding: pb.EmbedResponse) -> bytes:
    if not embedding.vector:
        return MessageToJson(embedding, indent=None).encode()
    vector = msgspec.Raw(write_floats(embedding.vector))
    rest = pb.EmbedResponse()
    rest.CopyFrom(embedding)
    rest.ClearField("vector")
    return msgspec.json.encode(MessageToDict(rest) | {"vector": vector})


def _batch(message: pb.EmbedBatchResponse, embeddings: Sequence[msgspec.Raw]) -> bytes:
    return _with_list(message, "embeddings", embeddings)


def _with_list(message: Message, name: str, values: Sequence[object]) -> bytes:
    """Write a message whose only repeated field is already written."""
    document = {field.json_name: value for field, value in message.ListFields() if field.name != name}
    return msgspec.json.encode(document | {name: values} if values else document)


CODECS = (BinaryCodec(), CompactJsonCodec())
