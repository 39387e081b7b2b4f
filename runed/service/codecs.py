"""How messages are written: protobuf and JSON, by Google's runtime."""

from __future__ import annotations

from typing import TypeVar

from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class CompactJsonCodec:
    """The JSON codec of connectrpc, but on one line: a vector of 1,024 values would else have 1,024 lines."""

    def __init__(self) -> None:
        self._codec: Codec[Message, Message] = google_protobuf_json_codec()

    def name(self) -> str:
        """Give the name that the content type carries."""
        return self._codec.name()

    def encode(self, message: Message) -> bytes:
        """Write a message."""
        return MessageToJson(message, indent=None).encode()

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        """Read a message of a class."""
        message = self._codec.decode(data, message_class)
        assert isinstance(message, message_class)
        return message


CODECS = (google_protobuf_binary_codec(), CompactJsonCodec())
