"""The embeddings part of the OpenAI API. A program written for OpenAI only changes its base URL."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from runed.api.answer_size import reserve_answer
from runed.api.call_log import logged_call
from runed.api.error_codes import CanceledError, MalformedRequestError
from runed.api.host import Host
from runed.api.json_body import check_unicode, read_json
from runed.api.large import beside_the_loop, let_go
from runed.api.openai import PREFIX
from runed.api.openai.errors import ModelNotFoundError, UnsupportedTypeError, error_response
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Role, Truncate
from runed.domain.status import Info, Status
from runed.errors import (
    BackendUnavailableError,
    BootstrappingError,
    InvalidRequestError,
    RequestTooLargeError,
    RunedError,
    ShuttingDownError,
    UnimplementedError,
    apology,
)
from runed.turns import breathe_before

T = TypeVar("T")

_EMBEDDINGS = f"{PREFIX}embeddings"
_MODELS = f"{PREFIX}models"

_FIELD = re.compile(r"\$\.(\w+)")
"""Pattern of the bad field's name in an error of msgspec. Unknown fields are skipped, and never named."""


class _EmbeddingsRequest(msgspec.Struct):
    """The body of `POST /v1/embeddings`. The last four fields are those of `EmbedRequest` in runed.proto."""

    input: Any = msgspec.UNSET  # read by `_texts`, whose errors name the fault
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    role: Role | None = None
    instruction: str | None = None
    truncate: Truncate | None = None
    lane: Lane | None = None

    def options(self) -> EmbedOptions:
        """Return the options of the call."""
        return EmbedOptions(
            lane=self.lane,
            role=self.role or Role.NONE,
            instruction=self.instruction or "",
            dimensions=self.dimensions or 0,
            truncate=self.truncate or Truncate.NONE,
        )


_ACCEPTED = {
    "model": "a string; any name will do, since there is one model",
    "encoding_format": '"float" or "base64"',
    "dimensions": "a whole number from 1 on",
    "role": '"query" or "document"',
    "instruction": "a string",
    "truncate": '"none", "end" or "start"',
    "lane": '"interactive" or "bulk"',
}


def build_openai_app(host: Host) -> Starlette:
    """Build the application that answers `POST /v1/embeddings`, `GET /v1/models` and `GET /v1/models/{id}`.

    Args:
        host: The daemon.

    Returns:
        An ASGI application that answers any other path with an error of the same shape.
    """
    limit = host.info().max_request_bytes

    async def embeddings(request: Request) -> Response:
        with logged_call("OpenAI") as call:
            try:
                body = await _read(request, limit)
            except ClientDisconnect:
                raise _gone() from None
            wanted = _request(await beside_the_loop(partial(read_json, body), len(body)))
            del body
            texts = _texts(wanted.input)
            options = wanted.options()
            call.texts, call.lane = len(texts), options.lane
            reserve_answer(host, len(texts), options, as_text=wanted.encoding_format != "base64")
            answer = await _while_connected(request, host.embed(texts, options, client=_client(request)))
            call.count(answer.items)
            content = await _encode(answer, _model_id(host.info()), as_base64=wanted.encoding_format == "base64")
        return Response(content, media_type="application/json")

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [_describe(await _installed(host, request))]})

    async def model(request: Request) -> Response:
        info = await _installed(host, request)
        # A model of the user's own has no variant. An empty name must not match it.
        if request.path_params["id"] not in {info.model_variant, info.model_name, info.model_identity} - {""}:
            raise ModelNotFoundError(f"there is no such model here, only {_model_id(info)}; GET {_MODELS} lists it")
        return _json(_describe(info))

    app = Starlette(
        routes=[
            Route(_EMBEDDINGS, embeddings, methods=["POST"]),
            Route(_MODELS, models),
            Route(f"{_MODELS}/{{id:path}}", model),
        ],
        exception_handlers={RunedError: _refuse, HTTPException: _refuse_route, Exception: _apologize},
    )
    app.router.redirect_slashes = False  # a redirection would turn the POST into a GET
    return app


async def _read(request: Request, limit: int) -> bytearray:
    """Read the body, up to `limit` bytes."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
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


def _request(document: object) -> _EmbeddingsRequest:
    if not isinstance(document, dict):
        raise MalformedRequestError('the body is no JSON object; send one such as {"input": "a text"}')
    try:
        wanted = msgspec.convert(document, _EmbeddingsRequest)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        assert found is not None
        field = found[1]
        raise InvalidRequestError(
            f"{field} has a value that cannot be used; accepted is {_ACCEPTED[field]}", metadata={"field": field}
        ) from None
    check_unicode(wanted.instruction or "", "instruction")
    return wanted


def _texts(value: object) -> list[str]:
    match value:
        case str():
            return [value]
        case list() if all(isinstance(text, str) for text in value):
            return value
        case [int() | [int(), *_], *_]:
            message = (
                "input holds tokens, as numbers, of a tokenizer that is not this model's; send strings. LangChain does so with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False)"
            )
        case msgspec.UNSET:
            message = "input is missing; send a string or a list of strings"
        case _:
            message = "input is neither a string nor a list of strings; send one of these"
    raise InvalidRequestError(message, metadata={"field": "input"})


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work, and cancel it when the client goes.

    Raises:
        CanceledError: The client has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _gone()
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _disconnected(request: Request) -> None:
    """Wait until the client goes, and discard everything that it still sends."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone() -> CanceledError:
    return CanceledError("the client has gone")


async def _encode(answer: EmbedAnswer, model: str, *, as_base64: bool) -> bytes:
    data: list[msgspec.Raw] = []
    tokens = 0
    for index, item in enumerate(answer.items):
        await breathe_before(index)  # 2,048 vectors of 1,024 numbers take half a second
        assert isinstance(item, Embedding)  # errors of single items were not requested
        vector = base64.b64encode(item.vector).decode() if as_base64 else np.frombuffer(item.vector, "<f4").tolist()
        data.append(msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": vector})))
        tokens += item.tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


async def _installed(host: Host, request: Request) -> Info:
    """Return the Info of an installed model. Wait for the model as long as an embedding would.

    Raises:
        RunedError: The reason why there is no model yet.
    """
    await _while_connected(request, host.settle())
    info, health = host.info(), host.health()
    if info.model_identity:
        return info
    match health.status:
        case Status.DEGRADED:
            raise BackendUnavailableError(health.message)
        case Status.SHUTTING_DOWN:
            raise ShuttingDownError(health.message)
        case _:
            raise BootstrappingError(f"the model is not there yet: {health.message}")


def _model_id(info: Info) -> str:
    """Return the name by which the model is listed: that of the manifest, or for a user's own model that of its file."""
    return info.model_variant or info.model_name or info.model_identity


def _describe(info: Info) -> dict[str, object]:
    return {"id": _model_id(info), "object": "model", "created": 0, "owned_by": "runed"}  # its creation time is unknown


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")


def _client(request: Request) -> str:
    """Return the name of a caller's connection. The RPC library uses the same names."""
    return f"{request.client.host}:{request.client.port}" if request.client else ""


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RunedError)
    let_go(error)
    return error_response(error)


async def _refuse_route(_: Request, error: Exception) -> Response:
    """Answer a request with an unknown path or method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:  # noqa: PLR2004 # HTTP's
        allowed = (error.headers or {}).get("Allow", "")
        wrong = MalformedRequestError(f"this HTTP method cannot be used here; use {allowed}")
        return error_response(wrong, status=405, headers={"allow": allowed})
    return error_response(UnimplementedError(f"there is no such path; here are POST {_EMBEDDINGS} and GET {_MODELS}"))


async def _apologize(_: Request, error: Exception) -> Response:
    """Answer after a bug. Starlette raises the error again afterwards, and the server logs it without its text."""
    return error_response(apology(error))
