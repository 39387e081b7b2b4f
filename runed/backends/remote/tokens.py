"""The tokens of texts, by engines on other machines that tell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from runed.backends.base import Tokens, pack
from runed.backends.remote.answers import WrongAnswerError, read
from runed.backends.remote.discovery import Found
from runed.backends.remote.http import RemoteHTTP

_TEI_TEXTS = 32
"""Texts of one request to Text Embeddings Inference, whose default limit this is."""

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Token(msgspec.Struct):
    id: _Id


class _Ids(msgspec.Struct):
    tokens: list[_Id]


async def tokenize(http: RemoteHTTP, found: Found, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, including special ones.

    Raises:
        PassingError, RefusedError, BackendUnavailableError: As `RemoteHTTP.get`.
        WrongAnswerError: The answer makes no sense.
    """
    url = f"{found.root}/tokenize"
    if found.engine in {"tei", "runed"}:
        result: list[Tokens] = []
        for start in range(0, len(texts), _TEI_TEXTS):
            some = texts[start : start + _TEI_TEXTS]
            answer = read((await http.post(url, {"inputs": some})).body, list[list[_Token]])
            if len(answer) != len(some):
                raise WrongAnswerError(f"the tokens of {len(answer)} texts of {len(some)}")
            result += [pack(token.id for token in tokens) for tokens in answer]
        return result
    ask = _ONE_BY_ONE[found.engine]
    return [pack(read((await http.post(url, ask(found, text))).body, _Ids).tokens) for text in texts]


def _llamacpp(_: Found, text: str) -> dict[str, object]:
    return {"content": text, "add_special": True, "parse_special": True}


def _vllm(found: Found, text: str) -> dict[str, object]:
    return {"model": found.model, "prompt": text, "add_special_tokens": True}


_ONE_BY_ONE: dict[str, Callable[[Found, str], dict[str, object]]] = {"llamacpp": _llamacpp, "vllm": _vllm}
