"""Requests to rank, in the form that Jina, Cohere and llama-server share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from runed.api.call_log import Call
from runed.api.host import Host
from runed.api.web.requests import WHOLE, Whole, client_of, convert, texts_of, while_connected
from runed.domain.ranking import RerankOptions
from runed.domain.requests import Lane, Truncate
from runed.errors import InvalidRequestError
from runed.float_json import shorten_floats


class _RerankRequest(msgspec.Struct):
    """The body. The last two fields are those of `RerankRequest` in runed.proto."""

    query: Any = msgspec.UNSET  # read by `query_of`, whose errors name the fault
    documents: Any = msgspec.UNSET  # read by `_texts`
    model: str | None = None
    top_n: Whole | None = None
    return_documents: bool | None = None
    truncate: Truncate | None = None
    lane: Lane | None = None


_ACCEPTED = {
    "model": "a string, the name of a reranker",
    "top_n": WHOLE,
    "return_documents": "true or false",
    "truncate": '"none", "end" or "start"',
    "lane": '"interactive" or "bulk"',
}


async def rank(host: Host, request: Request, document: Mapping[str, Any], call: Call) -> dict[str, object]:
    """Rank the documents of a request.

    Args:
        host: The daemon.
        request: The request.
        document: Its body.
        call: Gets the facts about the call.

    Returns:
        The answer: the results in order, and the tokens that were read.

    Raises:
        RunedError: The request cannot be served.
    """
    wanted = convert(document, _RerankRequest, _ACCEPTED)
    query, texts = query_of(wanted.query), _texts(wanted.documents)
    options = RerankOptions(
        lane=wanted.lane, truncate=wanted.truncate or Truncate.NONE, top_n=wanted.top_n or 0, model=wanted.model or ""
    )
    call.texts, call.lane, call.asked = len(texts), options.lane, options.model
    answer = await while_connected(request, host.rerank(query, texts, options, client=client_of(request)))
    call.count_ranked(answer)
    scores = shorten_floats([result.score for result in answer.results])
    results: list[dict[str, object]] = [
        {"index": result.index, "relevance_score": score} for result, score in zip(answer.results, scores, strict=True)
    ]
    if wanted.return_documents:
        for result in results:
            result["document"] = {"text": texts[int(str(result["index"]))]}
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return {"object": "list", "model": answer.model, "results": results, "usage": usage}


def query_of(value: object) -> str:
    """Return the query of a request.

    Raises:
        InvalidRequestError: It is no text.
    """
    if isinstance(value, str):
        return value
    fault = "is missing" if value is msgspec.UNSET else "is no string"
    raise InvalidRequestError(f"query {fault}; send a string", metadata={"field": "query"})


def _texts(value: object) -> list[str]:
    """Return the documents of a request: a list of strings, or of objects with a text."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        found = [item.get("text") if isinstance(item, dict) else item for item in value]
        if len(texts := [text for text in found if isinstance(text, str)]) == len(found):
            return texts
        raise InvalidRequestError(
            'documents has a value that cannot be used; accepted are strings, and objects such as {"text": "a text"}',
            metadata={"field": "documents"},
        )
    if isinstance(value, str):
        raise InvalidRequestError("documents is a string; send a list of strings", metadata={"field": "documents"})
    return texts_of(value, "documents")
