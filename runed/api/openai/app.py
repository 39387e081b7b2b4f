"""The part of the OpenAI API that is about embeddings, so that programs written for it need no change but their base URL."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from runed.api.host import Host
from runed.api.openai.errors import ModelNotFoundError, UnsupportedTypeError, error_response
from runed.api.rpc.error_codes import CanceledError, MalformedRequestError
from runed.api.rpc.observation import logged_call
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Role, Truncate
from runed.domain.status import Info, Status
from runed.errors import (
    BackendUnavailableError,
    BootstrappingError,
    InvalidRequestError,
    RequestTooLargeError,
    RunedError,
    UnimplementedError,
)

T = TypeVar("T")

PREFIX = "/v1/"
"""How every path of the API begins, also those that are not there."""

_EMBEDDINGS = f"{PREFIX}embeddings"
_MODELS = f"{PREFIX}models"

_TOKENS = re.compile(rb"\s*\[\s*[\[\d-]")
"""How a list of tokens, or of lists of tokens, begins."""

_FIELD = re.compile(r"\$\.(\w+)")
"""How msgspec names the field that it cannot use; those that the request below does not have are skipped, and never named."""


class _EmbeddingsRequest(msgspec.Struct):
    """The body of `POST /v1/embeddings`; the last four are those of `EmbedRequest` in runed.proto, unknown ones are ignored."""

    input: msgspec.Raw = msgspec.Raw()  # left as it is, to tell what is wrong with it
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    role: Role | None = None
    instruction: str | None = None
    truncate: Truncate | None = None
    lane: Lane | None = None

    def options(self) -> EmbedOptions:
        """Give how the texts are to be embedded."""
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
                wanted = _decode(await _read(request, limit))
                texts = _texts(wanted.input)
                options = wanted.options()
                call.texts, call.lane = len(texts), options.lane
                answer = await _while_connected(request, host.embed(texts, options, client=_client(request)))
                call.count(answer.items)
                content = await _encode(answer, _model_id(host.info()), as_base64=wanted.encoding_format == "base64")
            except ClientDisconnect:
                raise CanceledError("the client has gone") from None
        return Response(content, media_type="application/json")

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [_describe(_installed(host))]})

    async def model(request: Request) -> Response:
        info = _installed(host)
        # A model of the user's own has no variant, which must not make it answer to an empty name.
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
    app.router.redirect_slashes = False  # a POST does not survive a redirection
    return app


async def _read(request: Request, limit: int) -> bytearray:
    """Read the body, but no more of it than may be."""
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


def _decode(body: bytearray) -> _EmbeddingsRequest:
    try:
        return msgspec.json.decode(body, type=_EmbeddingsRequest)
    except msgspec.ValidationError as error:
        if (found := _FIELD.search(str(error))) is None:
            raise MalformedRequestError('the body is no JSON object; send one such as {"input": "a text"}') from None
        field = found[1]
        raise InvalidRequestError(
            f"{field} has a value that cannot be used; accepted is {_ACCEPTED[field]}", metadata={"field": field}
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedRequestError(
            'the body is not valid JSON, or not valid Unicode; send an object such as {"input": "a text"}'
        ) from None


def _texts(raw: msgspec.Raw) -> list[str]:
    data = memoryview(raw)  # not a copy: there may be 32 MiB of it
    try:
        texts = msgspec.json.decode(data, type=str | list[str])
    except msgspec.ValidationError:
        if _TOKENS.match(data):
            message = (
                "input holds tokens, as numbers, of a tokenizer that is not this model's; send strings. LangChain does so with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False)"
            )
        else:
            message = "input is neither a string nor a list of strings; send one of these"
        raise InvalidRequestError(message, metadata={"field": "input"}) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        if not data:
            raise InvalidRequestError(
                "input is missing; send a string or a list of strings", metadata={"field": "input"}
            ) from None
        raise MalformedRequestError("input is not valid JSON, or not valid Unicode", metadata={"field": "input"}) from None
    return [texts] if isinstance(texts, str) else texts


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and drop it when the client goes.

    Raises:
        ClientDisconnect: The client has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(request.receive())  # after the body, only the end of the connection is left to come
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _encode(answer: EmbedAnswer, model: str, *, as_base64: bool) -> bytes:
    data: list[msgspec.Raw] = []
    tokens = 0
    for index, item in enumerate(answer.items):
        assert isinstance(item, Embedding)  # errors by the item were not asked for
        vector = base64.b64encode(item.vector).decode() if as_base64 else np.frombuffer(item.vector, "<f4").tolist()
        data.append(msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": vector})))
        tokens += item.tokens
        # 2,048 vectors of 1,024 numbers take half a second, in which nobody else would be served.
        await asyncio.sleep(0)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _installed(host: Host) -> Info:
    """Give what is known of the model, or say why it is not there yet."""
    info, health = host.info(), host.health()
    if info.model_identity:
        return info
    if health.status is Status.DEGRADED:
        raise BackendUnavailableError(health.message)
    raise BootstrappingError(f"the model is not there yet: {health.message}")


def _model_id(info: Info) -> str:
    """Give the name by which the model is listed: that of the manifest, or what a model of the user's own calls itself."""
    return info.model_variant or info.model_name or info.model_identity


def _describe(info: Info) -> dict[str, object]:
    return {"id": _model_id(info), "object": "model", "created": 0, "owned_by": "runed"}  # when it was made, nobody knows


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")


def _client(request: Request) -> str:
    """Tell callers apart, by their connection, with the name that it has for the RPC library too."""
    return f"{request.client.host}:{request.client.port}" if request.client else ""


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RunedError)
    return error_response(error)


async def _refuse_route(_: Request, error: Exception) -> Response:
    """Answer a path or method that is not there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:  # noqa: PLR2004 # HTTP's
        allowed = (error.headers or {}).get("Allow", "")
        wrong = MalformedRequestError(f"this HTTP method cannot be used here; use {allowed}")
        return error_response(wrong, status=405, headers={"allow": allowed})
    return error_response(UnimplementedError(f"there is no such path; here are POST {_EMBEDDINGS} and GET {_MODELS}"))


async def _apologize(_: Request, __: Exception) -> Response:
    """Answer after a bug; Starlette raises the error once more, and the server logs it without its text."""
    return error_response(RunedError("the daemon failed at this call; its log says where, please report it"))
