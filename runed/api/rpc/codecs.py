"""The codecs of messages: protobuf and JSON, by Google's runtime. msgspec writes the vectors in JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from google.protobuf.json_format import MessageToDict, MessageToJson, ParseError
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

M = TypeVar("M", bound=Message)

_FIELD_AT_FAULT = re.compile(r"Failed to parse (\w+) field: ")
"""The start of an error of Google's runtime; the rest of it may quote the caller."""


class CompactJsonCodec:
    """A compact and quick variant of connectrpc's JSON codec.

    A message is one line: otherwise a vector of 1,024 values has 1,024 lines. Google's runtime takes 2 microseconds or more for
    each value. For a batch of 2,048 vectors these are seconds in which the event loop serves nobody.
    """

    def __init__(self) -> None:
        self._codec: Codec[Message, Message] = google_protobuf_json_codec()

    def name(self) -> str:
        """Return the name that the content type carries."""
        return self._codec.name()

    def encode(self, message: Message) -> bytes:
        """Write a message."""
        vectors = [list(embedding.vector) for embedding in _embeddings(message)]
        if not any(vectors):
            return MessageToJson(message, indent=None).encode()
        rest = type(message)()
        rest.CopyFrom(message)
        for embedding in _embeddings(rest):
            embedding.ClearField("vector")
        document = MessageToDict(rest)
        for place, vector in zip(_places(document), vectors, strict=True):
            if vector:
                place["vector"] = vector
        return msgspec.json.encode(document)

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        """Read a message of a class.

        Raises:
            ValueError: The data is not JSON, has a field of another type, or names a value that an enum does not have. The
                message is ours, since that of Google's runtime quotes the caller.
        """
        _check_enums(data, message_class)
        try:
            message = self._codec.decode(data, message_class)
        except ParseError as error:
            raise ValueError(
                f"the JSON is no {message_class.DESCRIPTOR.name}: {_what_is_wrong(error, message_class)}"
            ) from None
        assert isinstance(message, message_class)
        return message


class _Enums(msgspec.Struct):
    """The fields of a request that hold names of an enum. All of them are at the top level."""

    lane: object = None
    role: object = None
    truncate: object = None


def _check_enums(data: bytes | bytearray, message_class: type[Message]) -> None:
    """Refuse an unknown name of an enum. Google's runtime ignores it: a query would be embedded as plain text."""
    try:
        document = msgspec.json.decode(data, type=_Enums)
    except msgspec.DecodeError as error:  # its message names only types and places
        raise ValueError(f"the request is no JSON object: {error}") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    for field in message_class.DESCRIPTOR.fields:
        name = getattr(document, field.name, None)
        if field.enum_type and isinstance(name, str) and name not in field.enum_type.values_by_name:
            known = ", ".join(field.enum_type.values_by_name)
            raise ValueError(f"{field.name} {name[:40]!r} is unknown to this version of runed; use one of {known}")


def _what_is_wrong(error: ParseError, message_class: type[Message]) -> str:
    """Describe the fault, with the top-level field that Google's runtime could not read."""
    found = _FIELD_AT_FAULT.match(str(error))
    names = {name for field in message_class.DESCRIPTOR.fields for name in (field.name, field.json_name)}
    if found and found[1] in names:
        return f"its field {found[1]} has a value of another type or range than runed.proto gives it"
    return "a field or a oneof is there twice, or a value is of another type than runed.proto gives it"


def _embeddings(message: Message) -> Sequence[pb.EmbedResponse]:
    """Return the messages inside a message that have a vector each."""
    match message:
        case pb.EmbedResponse():
            return [message]
        case pb.EmbedBatchResponse():
            return message.embeddings
        case pb.EmbedStreamResponse():
            return [result.embedding for result in message.results]
    return []


def _places(document: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the same messages as `_embeddings`, in JSON."""
    if "embeddings" in document:
        places: list[dict[str, Any]] = document["embeddings"]
        return places
    if "results" in document:
        return [result["embedding"] for result in document["results"]]
    return [document]


CODECS = (google_protobuf_binary_codec(), CompactJsonCodec())
