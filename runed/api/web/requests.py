"""Requests of the JSON APIs: their bodies, their texts, and the work for a client that may go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from runed.api.error_codes import CanceledError, MalformedRequestError
from runed.api.json_body import check_unicode, read_json
from runed.api.large import beside_the_loop
from runed.api.web.errors import UnsupportedTypeError
from runed.errors import InvalidRequestError, RequestTooLargeError

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

Whole = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
"""A whole number of things, as large as the fields of runed.proto can hold."""

WHOLE = f"a whole number from 1 to {2**32 - 1}"
"""What such a field accepts, in words."""

_FIELD = re.compile(r"\$\.(\w+)")
"""Pattern of the bad field's name in an error of msgspec. Unknown fields are skipped, and never named."""


async def read_object(request: Request, limit: int, *, any_type: bool = False) -> dict[str, Any]:
    """Read the body of a request, which is a JSON object.

    Args:
        request: The request.
        limit: The most bytes of the body.
        any_type: Whether a body of another type than JSON is read, too. The clients of some APIs send none, or that of a form.

    Raises:
        RunedError: The body is too large, or of another type, or no JSON object, or the client has gone.
    """
    try:
        body = await _read(request, limit, any_type=any_type)
    except ClientDisconnect:
        raise gone() from None
    document = await beside_the_loop(partial(read_json, body), len(body))
    if not isinstance(document, dict):
        raise MalformedRequestError('the body is no JSON object; send one such as {"name": "value"}')
    return document


async def _read(request: Request, limit: int, *, any_type: bool) -> bytearray:
    """Read the body, up to `limit` bytes."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not any_type:
        raise UnsupportedTypeError("this Content-Type cannot be used here; send the header Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedTypeError("this Content-Encoding cannot be used here; send the body uncompressed")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise RequestTooLargeError(
                f"the request has more than the limit of {limit} bytes; send several requests", metadata={"limit": str(limit)}
            )
    return body


def convert(document: Mapping[str, Any], kind: type[S], accepted: Mapping[str, str]) -> S:
    """Turn a JSON object into a structure.

    Args:
        document: The object.
        kind: The class of the structure, one of msgspec.
        accepted: What each field accepts, in words.

    Raises:
        InvalidRequestError: A field has a value that cannot be used. The error has its name as its `field`.
        MalformedRequestError: A string of the object, other than a text, has half of a surrogate pair.
    """
    # msgspec fails at half of a surrogate pair, even in a name that is not read.
    read = {name: document[name] for name in kind.__struct_fields__ if name in document}
    for name in accepted:
        if isinstance(value := read.get(name), str):
            check_unicode(value, name)
    try:
        return msgspec.convert(read, kind)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        assert found is not None
        field = found[1]
        raise InvalidRequestError(
            f"{field} has a value that cannot be used; accepted is {accepted[field]}", metadata={"field": field}
        ) from None


def texts_of(value: object, field: str, *, advice: str = "") -> list[str]:
    """Return the texts of a request.

    Args:
        value: The value of the field.
        field: The name of the field.
        advice: Advice to a client that sends numbers of tokens.

    Raises:
        InvalidRequestError: These are no texts.
    """
    match value:
        case str():
            return [value]
        case list() if all(isinstance(text, str) for text in value):
            return value
        case [int() | [int(), *_], *_]:
            message = f"{field} holds tokens, as numbers, of a tokenizer that is not this model's; send strings{advice}"
        case msgspec.UNSET:
            message = f"{field} is missing; send a string or a list of strings"
        case _:
            message = f"{field} is neither a string nor a list of strings; send one of these"
    raise InvalidRequestError(message, metadata={"field": field})


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work, and cancel it when the client goes.

    Raises:
        CanceledError: The client has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise gone()
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _disconnected(request: Request) -> None:
    """Wait until the client goes, and discard everything that it still sends."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def gone() -> CanceledError:
    """Return the error of a call whose client has gone."""
    return CanceledError("the client has gone")


def client_of(request: Request) -> str:
    """Return the name of a caller's connection. The RPC library uses the same names."""
    return f"{request.client.host}:{request.client.port}" if request.client else ""
