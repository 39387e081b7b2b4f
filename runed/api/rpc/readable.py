"""Details of errors that the Connect protocol writes twice in JSON: as bytes for programs, and as `debug` for people."""

from __future__ import annotations

from typing import Any

import protobuf
from connectrpc.errors import ErrorDetail
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from protobuf.wkt import Any as Packed
from protobuf.wkt import Struct


class ReadableDetail(ErrorDetail):
    """A detail of an error.

    The RPC library writes what `value` returns as the member `debug`. It knows only messages of its own protobuf runtime, and
    ours are Google's. So the bytes are made by Google's, and the readable form is a `Struct` of the library's.

    Args:
        message: The detail.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(
            Packed(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString())
        )
        self._readable = protobuf.message_from_json_value(Struct, MessageToDict(message))

    def value(self, *_: object) -> Any:  # noqa: ANN401 # the base class has an overload for each kind of argument
        """Return the readable form."""
        return self._readable
