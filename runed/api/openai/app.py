"""The embeddings part of the OpenAI API. A program written for OpenAI only changes its base URL."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runed.api.answer_size import reserve_answer
from runed.api.call_log import logged_call
from runed.api.host import CountCall, Host, count_nothing
from runed.api.openai import PREFIX
from runed.api.openai.errors import error_response
from runed.api.web.app import build_web_app, json_response
from runed.api.web.requests import WHOLE, Whole, client_of, convert, read_object, texts_of, while_connected
from runed.api.web.vectors import numbers
from runed.domain.model_status import ModelStatus
from runed.domain.requests import EmbedAnswer, Embedding, EmbedOptions, Lane, Role, Truncate
from runed.turns import breathe_before

_EMBEDDINGS = f"{PREFIX}embeddings"
_MODELS = f"{PREFIX}models"

_LANGCHAIN = ". LangChain does so with OpenAIEmbeddings(check_embedding_ctx_length=False)"


class _EmbeddingsRequest(msgspec.Struct):
    """The body of `POST /v1/embeddings`. The last four fields are those of `EmbedRequest` in runed.proto."""

    input: Any = msgspec.UNSET  # read by `texts_of`, whose errors name the fault
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = None
    role: Role | None = None
    instruction: str | None = None
    truncate: Truncate | None = None
    lane: Lane | None = None

    def options(self, host: Host) -> EmbedOptions:
        """Return the options of the call."""
        return EmbedOptions(
            lane=self.lane,
            role=self.role or Role.NONE,
            instruction=self.instruction or "",
            dimensions=self.dimensions or 0,
            truncate=self.truncate or Truncate.NONE,
            model=_model_asked(host, self.model or ""),
        )


_ACCEPTED = {
    "model": "a string, the name of a model",
    "encoding_format": '"float" or "base64"',
    "dimensions": WHOLE,
    "role": '"query" or "document"',
    "instruction": "a string",
    "truncate": '"none", "end" or "start"',
    "lane": '"interactive" or "bulk"',
}


def build_openai_app(host: Host, count: CountCall = count_nothing) -> Starlette:
    """Build the application that answers `POST /v1/embeddings`, `GET /v1/models` and `GET /v1/models/{id}`.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application that answers any other path with an error of the same shape.
    """
    limit, socket = host.info().max_request_bytes, host.info().socket_path

    async def embeddings(request: Request) -> Response:
        with logged_call("OpenAI", request, socket=socket) as call:
            wanted = convert(await read_object(request, limit), _EmbeddingsRequest, _ACCEPTED)
            texts = texts_of(wanted.input, "input", advice=_LANGCHAIN)
            options = wanted.options(host)
            call.texts, call.lane, call.asked = len(texts), options.lane, options.model
            call.encoding = wanted.encoding_format or ""
            reserve_answer(host, len(texts), options, as_text=wanted.encoding_format != "base64")
            answer = await while_connected(request, host.embed(texts, options, client=client_of(request)))
            call.count(answer.items, answer.space)
            content = await _encode(answer, as_base64=wanted.encoding_format == "base64")
        return Response(content, media_type="application/json")

    async def models(request: Request) -> Response:
        listed = await while_connected(request, host.models())
        return json_response({"object": "list", "data": [_describe(model) for model in listed]})

    async def model(request: Request) -> Response:
        found = await while_connected(request, host.model(_model_asked(host, request.path_params["id"])))
        return json_response(_describe(found))

    routes = [
        Route(_EMBEDDINGS, embeddings, methods=["POST"]),
        Route(_MODELS, models),
        Route(f"{_MODELS}/", models),
        Route(f"{_MODELS}/{{id:path}}", model),
    ]
    return build_web_app(routes, error_response, paths=f"POST {_EMBEDDINGS} and GET {_MODELS}", count=count)


async def _encode(answer: EmbedAnswer, *, as_base64: bool) -> bytes:
    data: list[msgspec.Raw] = []
    tokens = 0
    for index, item in enumerate(answer.items):
        await breathe_before(index)  # 2,048 vectors of 1,024 numbers take half a second
        assert isinstance(item, Embedding)  # errors of single items were not requested
        vector = base64.b64encode(item.vector).decode() if as_base64 else numbers(item)
        data.append(msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": vector})))
        tokens += item.tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": answer.space.model, "usage": usage})


def _model_asked(host: Host, name: str) -> str:
    """Return the name of a model for the host. Answers of earlier versions called the default model by other names."""
    if not name:
        return ""
    info = host.info()
    return "" if name in {info.model_name, info.model_identity} else name


def _describe(model: ModelStatus) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "runed"}  # its creation time is unknown
