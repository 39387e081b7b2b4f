"""What an engine on another machine means when it refuses a batch, by its status and by words that engines are known to use."""

from __future__ import annotations

import re
from enum import Enum
from http import HTTPStatus

from runed.backends.remote.http import RefusedError

_MANY = re.compile(
    r"maximum allowed batch|too many (?:inputs|texts|items|documents)|array too long|maximum length \d+|per request"
    r"|payload too large|body (?:is )?too (?:large|long)|request (?:entity )?(?:is )?too large|max_client_batch"
    r"|at most \d+ (?:inputs|texts|items)|batch_too_large|request_too_large"
)
"""Words about too many texts: TEI, OpenAI, vLLM, infinity, proxies, runed."""

_LONG = re.compile(
    r"context[ _]length|maximum context|too large to process"
    r"|exceed\w* (?:the )?(?:available |maximum )?(?:context|number of tokens)"
    r"|less than \d+ tokens|max(?:imum)?[ _]?(?:model|input|sequence)[ _]?len"
    r"|too many tokens|input (?:is )?too long|text_too_long"
)
"""Words about a text that is too long: llama-server, OpenAI, vLLM, TEI, Ollama, runed."""

_ENCODING = re.compile("encoding_format|base64")


class Refusal(Enum):
    """The reason for which a batch is refused."""

    MANY = "many"
    """It has too many texts, or too large ones together."""
    LONG = "long"
    """A text is too long."""
    ENCODING = "encoding"
    """The engine does not know base64."""
    OTHER = "other"


def why(error: RefusedError, texts: int) -> Refusal:
    """Return why an engine refuses a batch.

    Args:
        error: The refusal.
        texts: The number of texts of the batch.
    """
    if error.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}:
        return Refusal.OTHER
    if texts > 1 and _MANY.search(error.words):
        return Refusal.MANY
    if _LONG.search(error.words):
        return Refusal.LONG
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Refusal.MANY if texts > 1 else Refusal.LONG
    return Refusal.ENCODING if _ENCODING.search(error.words) else Refusal.OTHER
