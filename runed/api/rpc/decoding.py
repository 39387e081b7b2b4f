"""Bytes of clients to messages, in bounded time and memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError, Message

from runed.api.error_codes import MalformedRequestError
from runed.api.json_body import check_unicode, read_json
from runed.api.large import MANY_BYTES, MOST_PARTS, too_many_parts
from runed.errors import BatchTooLargeError, RunedError, quoted
from runed.turns import Pauses

_FIELD_AT_FAULT = re.compile(r"Failed to parse (\w+) field: ")
"""The start of an error of Google's runtime; the rest of it may quote the caller."""

_Descriptor: TypeAlias = Any
"""A descriptor of Google's runtime. Its stubs name two classes of it, of which one is private."""

_ACCEPTED = {
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_ENUM: "a name or a number of its enum",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_INT32: f"a whole number from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.TYPE_MESSAGE: "an object",
    FieldDescriptor.TYPE_STRING: "a string",
    FieldDescriptor.TYPE_UINT32: f"a whole number from 0 to {2**32 - 1}",
}
"""The values in JSON of each type of fields that requests have."""

_LISTS = {"texts", "documents"}
"""The names of the fields that hold lists of texts."""

_TEXTS = {"text", *_LISTS}
"""The names of the fields that hold texts."""


@dataclass(slots=True)
class Decoded:
    """A message, and the texts that no message can hold.

    Attributes:
        message: The message.
        broken: The texts with half of a surrogate pair, by their index among the texts of the message. The message has "" in
            their place.
        pauses: The pauses of the thread that reads it.
    """

    message: Message
    broken: dict[int, str] = field(default_factory=dict)
    pauses: Pauses = field(default_factory=Pauses)


_message: ContextVar[Message | None] = ContextVar("runed_message", default=None)
_broken: ContextVar[dict[int, str]] = ContextVar("runed_broken_texts")


def hand_over(decoded: Decoded) -> None:
    """Keep a message for `take_over`, and its broken texts for `whole`, in the same task."""
    _message.set(decoded.message)
    _broken.set(decoded.broken)


def take_over() -> Message | None:
    """Return the message that was handed over, unless it was taken before."""
    message = _message.get()
    _message.set(None)  # the message may be large, and its user knows for how long
    return message


def whole(texts: list[str], start: int = 0) -> list[str]:
    """Put broken texts back into their places.

    Args:
        texts: Texts of the message that was handed over last in this task.
        start: The index of the first of them among the texts of the message.
    """
    for index, text in _broken.get({}).items():
        if start <= index < start + len(texts):
            texts[index - start] = text
    return texts


def decode(data: bytes, message_class: type[Message], codec: str) -> Decoded:
    """Read a message.

    Args:
        data: The message.
        message_class: Its class.
        codec: The name of its encoding, "proto" or "json".

    Raises:
        MalformedRequestError: This is no such message. The text does not quote it.
        RequestTooLargeError: It has too many parts.
        BatchTooLargeError: The same, for a message that is a list of texts.
    """
    try:
        return _decode_json(data, message_class) if codec == "json" else _decode_binary(data, message_class)
    except RunedError as error:
        if error.reason == too_many_parts().reason and _LISTS.intersection(message_class.DESCRIPTOR.fields_by_name):
            raise BatchTooLargeError(error.message, metadata=error.metadata) from None
        raise


# protobuf


def _decode_binary(data: bytes, message_class: type[Message]) -> Decoded:
    if len(data) > MANY_BYTES:
        parts = 0
        with suppress(IndexError):  # a message that is cut off, which is for the runtime to say
            for _ in _fields(data, message_class.DESCRIPTOR, 0, len(data)):
                parts += 1
                if parts > MOST_PARTS:
                    raise too_many_parts()
    try:
        return Decoded(message_class.FromString(data))
    except DecodeError:
        raise MalformedRequestError(
            f"the message is no {message_class.DESCRIPTOR.name} in the protobuf encoding, or a text of it is not valid UTF-8"
        ) from None


def _fields(data: bytes, kind: _Descriptor, start: int, end: int) -> Iterator[None]:
    """Yield once for each field of a message, and of the messages inside of it.

    Raises:
        IndexError: The message is cut off.
    """
    while start < end:
        yield
        tag, start = _varint(data, start)
        match tag & 7:
            case 0:  # a varint
                _, start = _varint(data, start)
            case 1:  # 64 bits
                start += 8
            case 5:  # 32 bits
                start += 4
            case 2:  # a length, and as many bytes
                size, start = _varint(data, start)
                inner = kind.fields_by_number.get(tag >> 3)
                if inner is not None and inner.message_type is not None:
                    yield from _fields(data, inner.message_type, start, min(end, start + size))
                start += size
            case _:
                pass  # the start or the end of a group


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and the place after it."""
    value = data[at]
    if value < 0x80:  # noqa: PLR2004 # the bit that announces another byte
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 # as above
            break
    return value, at + 1


# JSON


def _decode_json(data: bytes, message_class: type[Message]) -> Decoded:
    document = read_json(data)
    if not isinstance(document, dict):
        raise MalformedRequestError('the request is no JSON object; send one, such as {"text": "a text"}')
    _check_misspelt(document, message_class)
    decoded = Decoded(message_class())
    _fill(decoded.message, document, decoded, None)
    return decoded


def _check_misspelt(document: dict[str, Any], message_class: type[Message]) -> None:
    """Refuse a request without its texts that has an unknown field instead. Beside texts, that is one of a newer client."""
    fields = message_class.DESCRIPTOR.fields
    lacking = [field.name for field in fields if field.name in _TEXTS and field.name not in document]
    if lacking and document.keys() - {name for field in fields for name in (field.name, field.json_name)}:
        names = ", ".join(field.json_name for field in fields)
        raise MalformedRequestError(
            f"the JSON has no field {lacking[0]}, and one that is unknown; {message_class.DESCRIPTOR.name} has the fields "
            f"{names}",
            metadata={"field": lacking[0]},
        )


def _fill(message: Message, document: dict[str, Any], decoded: Decoded, index: int | None) -> None:
    """Read the members of an object into a message.

    Strings and inner messages are read here. Google's runtime reads everything else. It takes half a second for a string of 30
    MiB, and for a broken text it refuses the whole message.

    Args:
        message: The empty message.
        document: The object.
        decoded: Gets the broken texts.
        index: The place of the message in a list of messages, or None.
    """
    rest: dict[str, Any] = {}
    for kind in message.DESCRIPTOR.fields:
        names = [name for name in {kind.json_name, kind.name} if name in document]
        if len(names) > 1:
            raise MalformedRequestError(f"the JSON has the field {kind.name} twice")
        if not names or (value := document[names[0]]) is None:
            continue
        if (oneof := kind.containing_oneof) is not None and message.WhichOneof(oneof.name) is not None:
            raise MalformedRequestError(f"the JSON has two fields of the oneof {oneof.name}; send one of them")
        if kind.message_type is not None and not _special_in_json(kind.message_type):
            _fill_inner(message, kind, value, decoded)
        elif kind.type == FieldDescriptor.TYPE_STRING:
            _fill_strings(message, kind, value, decoded, index)
        else:
            _check_enum(kind, value)
            rest[names[0]] = value
    if rest:
        try:
            ParseDict(rest, message)
        except (ParseError, OverflowError) as error:  # the latter for an infinite number in a field of integers
            found = _FIELD_AT_FAULT.match(str(error))
            name = found[1] if found and found[1] in rest else "/".join(rest)
            raise _wrong_value(message, name) from None


def _special_in_json(kind: _Descriptor) -> bool:
    """Return whether a message is not written as an object with its fields, but as a map, or in a form of its own."""
    return bool(kind.GetOptions().map_entry or kind.full_name.startswith("google.protobuf."))


def _fill_inner(message: Message, kind: _Descriptor, value: object, decoded: Decoded) -> None:
    if not kind.is_repeated:
        inner = getattr(message, kind.name)
        inner.SetInParent()
        _fill(inner, _checked(message, kind, value, dict), decoded, None)
        return
    messages = getattr(message, kind.name)
    for index, part in enumerate(_checked(message, kind, value, list)):
        _fill(messages.add(), _checked(message, kind, part, dict), decoded, index)


def _fill_strings(message: Message, kind: _Descriptor, value: object, decoded: Decoded, index: int | None) -> None:
    if not kind.is_repeated:
        text = _fitting(message, kind, value, decoded, index or 0)
        setattr(message, kind.name, text)
        decoded.pauses.pause()
        return
    texts = _checked(message, kind, value, list)
    getattr(message, kind.name).extend(_fitting(message, kind, text, decoded, place) for place, text in enumerate(texts))


def _fitting(message: Message, kind: _Descriptor, value: object, decoded: Decoded, index: int) -> str:
    """Return a string that the message can hold."""
    text: str = _checked(message, kind, value, str)
    try:
        check_unicode(text, kind.name)
    except MalformedRequestError:
        if kind.name not in _TEXTS:
            raise
        decoded.broken[index] = text
        return ""
    decoded.pauses.pause()
    return text


def _checked(message: Message, kind: _Descriptor, value: object, wanted: type) -> Any:  # noqa: ANN401 # of type `wanted`
    if not isinstance(value, wanted):
        raise _wrong_value(message, kind.name)
    return value


def _check_enum(kind: _Descriptor, value: object) -> None:
    """Refuse an unknown name of an enum. A query must not be embedded as plain text."""
    if kind.enum_type is not None and isinstance(value, str) and value not in kind.enum_type.values_by_name:
        known = ", ".join(kind.enum_type.values_by_name)
        raise MalformedRequestError(f"{kind.name} {quoted(value)} is unknown to this version of runed; use one of {known}")


def _wrong_value(message: Message, name: str) -> MalformedRequestError:
    kind = message.DESCRIPTOR.fields_by_camelcase_name.get(name) or message.DESCRIPTOR.fields_by_name.get(name)
    accepted = _ACCEPTED.get(kind.type, "what runed.proto says") if kind else "what runed.proto says"
    if kind and kind.is_repeated:
        accepted = f"a list, each item being {accepted}"
    return MalformedRequestError(
        f"the JSON is no {message.DESCRIPTOR.name}: its field {name} has a value that cannot be used; accepted is {accepted}",
        metadata={"field": name},
    )
