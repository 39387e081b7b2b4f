"""The API of Text Embeddings Inference. A program written for TEI only changes its URL. It gets the default model."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runed import errors
from runed.api.answer_size import reserve_answer
from runed.api.call_log import RERANK, logged_call
from runed.api.host import CountCall, Host, count_nothing
from runed.api.tei.errors import error_response
from runed.api.web.app import build_web_app, json_response
from runed.api.web.ranking import query_of, rank
from runed.api.web.requests import WHOLE, Whole, client_of, convert, read_object, texts_of, while_connected
from runed.api.web.vectors import all_numbers
from runed.domain.model_status import Tokenized
from runed.domain.ranking import RerankOptions
from runed.domain.requests import EmbedOptions, Role, Truncate
from runed.float_json import shorten_floats
from runed.server import reserve
from runed.turns import breathe_before

_TOKENIZE_BYTES = 1024 * 1024
"""Most bytes of a request for tokens. Its answer takes about 80 times as much."""

_TOKEN_BYTES = 80
"""Bytes of a token in an answer."""

_CUT_SIDES = {"right": Truncate.END, "left": Truncate.START}


class _EmbedRequest(msgspec.Struct):
    """The body of `POST /embed`."""

    inputs: Any = msgspec.UNSET  # read by `texts_of`, whose errors name the fault
    truncate: bool | None = None
    truncation_direction: Literal["right", "left", "Right", "Left"] | None = None
    prompt_name: Literal["query", "document"] | None = None
    normalize: bool | None = None
    dimensions: Whole | None = None

    def options(self) -> EmbedOptions:
        """Return the options of the call.

        Raises:
            InvalidRequestError: The vectors shall not have length 1.
        """
        if self.normalize is False:
            raise errors.InvalidRequestError(
                "normalize is false, but all vectors have length 1 here; leave it out", metadata={"field": "normalize"}
            )
        cut = _CUT_SIDES[(self.truncation_direction or "right").lower()]
        return EmbedOptions(
            role=Role(self.prompt_name or "none"),
            truncate=cut if self.truncate else Truncate.NONE,
            dimensions=self.dimensions or 0,
        )


class _RerankRequest(msgspec.Struct):
    """The body of `POST /rerank`."""

    query: Any = msgspec.UNSET  # read by `query_of`
    texts: Any = msgspec.UNSET
    truncate: bool | None = None
    truncation_direction: Literal["right", "left", "Right", "Left"] | None = None
    raw_scores: bool = False
    return_text: bool = False

    def options(self) -> RerankOptions:
        """Return the options of the call."""
        cut = _CUT_SIDES[(self.truncation_direction or "right").lower()]
        return RerankOptions(truncate=cut if self.truncate else Truncate.NONE)


class _TokenizeRequest(msgspec.Struct):
    """The body of `POST /tokenize`."""

    inputs: Any = msgspec.UNSET
    add_special_tokens: bool = True
    prompt_name: Literal["query", "document"] | None = None


_ACCEPTED = {
    "truncate": "true or false",
    "truncation_direction": '"Right" or "Left"',
    "prompt_name": '"query" or "document"',
    "normalize": "true",
    "dimensions": WHOLE,
}
_ACCEPTED_RERANK = {
    "truncate": "true or false",
    "truncation_direction": '"Right" or "Left"',
    "raw_scores": "true or false",
    "return_text": "true or false",
}
_ACCEPTED_TOKENIZE = {"add_special_tokens": "true or false", "prompt_name": '"query" or "document"'}


def build_tei_app(host: Host, count: CountCall = count_nothing) -> Starlette:
    """Build the application that answers `/embed`, `/rerank`, `/tokenize`, `/info` and `/health`.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application that answers any other method with an error of the same shape.
    """
    limit, socket = host.info().max_request_bytes, host.info().socket_path

    async def embed(request: Request) -> Response:
        with logged_call("TEI", request, socket=socket) as call:
            wanted = convert(await read_object(request, limit), _EmbedRequest, _ACCEPTED)
            texts = texts_of(wanted.inputs, "inputs")
            options = wanted.options()
            call.texts = len(texts)
            reserve_answer(host, len(texts), options, as_text=True)
            answer = await while_connected(request, host.embed(texts, options, client=client_of(request)))
            call.count(answer.items, answer.space)
            return json_response(await all_numbers(answer))

    async def rerank(request: Request) -> Response:
        with logged_call("TEI", request, socket=socket, operation=RERANK) as call:
            document = await read_object(request, limit)
            if "texts" not in document and "documents" in document:  # llama-server answers both APIs here
                return json_response(await rank(host, request, document, call))
            wanted = convert(document, _RerankRequest, _ACCEPTED_RERANK)
            query, texts, options = query_of(wanted.query), texts_of(wanted.texts, "texts"), wanted.options()
            call.texts = len(texts)
            answer = await while_connected(request, host.rerank(query, texts, options, client=client_of(request)))
            call.count_ranked(answer)
        scores = shorten_floats([result.raw_score if wanted.raw_scores else result.score for result in answer.results])
        return json_response(
            [
                {"index": result.index, "score": score} | ({"text": texts[result.index]} if wanted.return_text else {})
                for result, score in zip(answer.results, scores, strict=True)
            ]
        )

    async def tokenize(request: Request) -> Response:
        wanted = convert(await read_object(request, _TOKENIZE_BYTES), _TokenizeRequest, _ACCEPTED_TOKENIZE)
        texts = texts_of(wanted.inputs, "inputs")
        options = EmbedOptions(role=Role(wanted.prompt_name or "none"))
        work = host.tokenize(texts, options, special=wanted.add_special_tokens)
        tokenized = await while_connected(request, work)
        reserve(sum(map(len, tokenized.ids)) * _TOKEN_BYTES)
        return json_response(await _tokens(tokenized))

    async def info(request: Request) -> Response:
        model = await while_connected(request, host.model())
        known = host.info()
        return json_response(
            {
                "model_id": model.name,
                "served_model_name": model.name,
                "model_sha": model.model_identity.partition(":")[2],
                "model_dtype": model.name[len(model.family) + 1 :].lower(),
                "model_type": {"embedding": {"pooling": model.pooling}},
                "max_input_length": model.max_text_length,
                "max_client_batch_size": known.max_batch_size,
                "max_concurrent_requests": known.max_queued_texts,
                "auto_truncate": False,
                "version": known.daemon_version,
                "sha": None,
                "docker_label": None,
            }
        )

    async def health(_: Request) -> Response:
        now = host.health()
        if not now.serves:
            raise errors.BackendUnavailableError(now.message or f"the daemon is {now.status.value}")
        return Response()

    routes = [
        *(Route(path, embed, methods=["POST"]) for path in ("/embed", "/")),  # clients of the inference API post to "/"
        Route("/rerank", rerank, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/info", info),
        *(Route(path, health) for path in ("/health", "/")),
    ]
    paths = "POST /embed, POST /rerank, POST /tokenize, GET /info and GET /health"
    return build_web_app(routes, error_response, paths=paths, count=count)


async def _tokens(tokenized: Tokenized) -> list[list[msgspec.Raw]]:
    """Return the tokens of each text. Their places in the text are not known, and the API allows that."""
    encoded = {
        token: msgspec.Raw(
            msgspec.json.encode(
                {"id": token, "text": piece, "special": token in tokenized.special, "start": None, "stop": None}
            )
        )
        for token, piece in tokenized.pieces.items()
    }
    result: list[list[msgspec.Raw]] = []
    for index, ids in enumerate(tokenized.ids):
        await breathe_before(index)
        result.append([encoded[token] for token in ids])
    return result
