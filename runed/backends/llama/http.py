"""The part of `llama-server`'s HTTP interface that runed uses, over its UNIX socket.

An error never quotes a text, nor a body of the server, which may quote one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import msgspec

from runed.backends.base import EmbeddingBatch, TextInput, Tokens, pack
from runed.backends.engine.http import EngineHTTP
from runed.backends.engine.vectors import check_vectors
from runed.backends.llama.passes import TILE, missing_tile
from runed.errors import BackendFaultError, InvalidTextError, TextTooLongError

_OK = 200

_SEPARATOR = -1
"""A number between the texts of a request to `/tokenize`, which returns numbers unchanged. No token has a negative id."""

_MAX_TOKEN = 2**31 - 1
"""Largest id of a token."""

_TOKENIZE_BYTES = 256 * 1024
"""Approximate bytes of text in one request to `/tokenize`. The answer is several times as large."""

_FEW_TOKENS = 8
"""Fewest tokens of a batch that the usual kernels compute. The kernels for up to 7 rows round quantized weights differently.
Measured on Qwen3-0.6B in q6_K: the vectors of a text of 2 to 7 tokens, alone and beside other texts, had cosines down to
0.9996; longer texts had 1."""

_FEW_BYTES = 32 * _FEW_TOKENS
"""Bytes beyond which a batch is assumed to have at least `_FEW_TOKENS` tokens. They are not counted then."""

_MOST_SPECIAL = 2
"""The most special tokens of a text."""

_FILLER = "a b c d e f g h"
"""A text of at least `_FEW_TOKENS` tokens, which is added to a batch with fewer tokens."""

_MAX_COUNT = 2**53
"""Largest number of tokens that is believed."""

_ANSWER_BYTES = 64 * 1024 * 1024
"""Most bytes of an answer, beside `_BYTES_A_BYTE`. The vectors of a batch have a third of that at most."""

_BYTES_A_BYTE = 16
"""Bytes that an answer may have for each byte of its question. A byte has one token at most, and a token seven digits."""

_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large to process")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Isolation:
    """The number of slots that share the context of the model, and the tokens that the engine computes at once.

    With these facts, `LlamaHTTP` keeps a vector independent of the other texts of its batch, and exact.
    """

    slots: int
    pass_tokens: int


class SlotsError(BackendFaultError):
    """The server cannot erase its slots. With more than one slot, vectors would depend on the other texts of a batch."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: bytes  # msgspec decodes base64


class Usage(msgspec.Struct):
    """The number of tokens that the server read."""

    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: Usage


class _Tokens(msgspec.Struct):
    tokens: list[Annotated[int, msgspec.Meta(ge=_SEPARATOR, le=_MAX_TOKEN)]]


class _Piece(msgspec.Struct):
    piece: str | list[int]  # the bytes of a token that is no valid UTF-8 by itself


class _Pieces(msgspec.Struct):
    tokens: list[_Piece]


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    n_prompt_tokens: int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class LlamaHTTP(EngineHTTP):
    """Talks to one `llama-server`. Must be made inside the event loop that uses it.

    Args:
        socket: The server's UNIX socket.
        dim: The number of values that each vector must have.
        max_tokens: The largest number of tokens of one text.
        isolation: The facts for `Isolation`; None where texts do not share a context.
    """

    name: ClassVar[str] = "llama-server"

    def __init__(self, socket: Path, *, dim: int, max_tokens: int, isolation: Isolation | None = None) -> None:
        super().__init__(socket, dim=dim, max_tokens=max_tokens, content_type="application/json")
        self._isolation = isolation
        self._special: tuple[Tokens, Tokens] | None = None

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text as `embed` would see it, including special tokens.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        if self._special is None:
            self._special = await self._find_special_tokens()
        first, last = self._special
        return [first + tokens + last for tokens in await self.tokenize_plainly(texts)]

    async def tokenize_plainly(self, texts: Sequence[str], *, parse_special: bool = True) -> list[Tokens]:
        """Return the tokens of each text without special ones around it.

        Args:
            texts: The texts.
            parse_special: Whether a special token that a text writes is read as one.

        Raises:
            InvalidTextError, BackendFaultError, ConnectionLostError: As `tokenize`.
        """
        return [tokens for part in _parts(texts) for tokens in await self._tokenize(part, parse_special=parse_special)]

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token.

        Raises:
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        # The server takes numbers for tokens, and returns them.
        question = {"content": list(tokens), "add_special": False, "with_pieces": True}
        pieces = decode(await self._post("/tokenize", question), _Pieces).tokens
        if len(pieces) != len(tokens):
            raise BackendFaultError(f"llama-server spelled {len(pieces)} tokens of {len(tokens)}; use another version of it")
        return [
            token.piece if isinstance(token.piece, str) else bytes(token.piece).decode(errors="replace") for token in pieces
        ]

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Embed a batch of texts, or of their tokens. Return one vector a text, in their order, each checked.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            TextTooLongError: A text has more tokens than the server takes.
            BackendFaultError: The answer is not one unit vector of the right length for each text.
            ConnectionLostError: There was no complete answer.
        """
        filler = await self._isolate(texts, self._isolation) if self._isolation else []
        question = [text if isinstance(text, str) else text.tolist() for text in (*texts, *filler)]
        body = await self._post("/v1/embeddings", {"input": question, "encoding_format": "base64"})
        answer = decode(body, _Embeddings)
        if sorted(item.index for item in answer.data) != list(range(len(question))):
            raise BackendFaultError(f"llama-server answered {len(answer.data)} vectors to {len(question)} texts")
        vectors = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
        check_vectors(vectors, dim=self._dim, engine=self.name)
        return EmbeddingBatch(vectors[: len(texts)], answer.usage.prompt_tokens - sum(map(len, filler)))

    async def _find_special_tokens(self) -> tuple[Tokens, Tokens]:
        """Return the tokens that the server puts before and after each text."""
        whole = pack(decode(await self._post("/tokenize", {"content": _FILLER, "add_special": True}), _Tokens).tokens)
        [text] = await self._tokenize([_FILLER])
        for start in range(len(whole) - len(text) + 1):
            if whole[start : start + len(text)] == text:
                return whole[:start], whole[start + len(text) :]
        raise BackendFaultError("llama-server tokenizes a text differently alone and among others; use another version of it")

    async def _tokenize(self, texts: Sequence[str], *, parse_special: bool = True) -> list[Tokens]:
        """Return what `tokenize_plainly` does, by one question."""
        content = [part for text in texts for part in (_SEPARATOR, text)]
        question = {"content": content, "add_special": True, "parse_special": parse_special}
        answer = decode(await self._post("/tokenize", question), _Tokens).tokens
        answer.append(_SEPARATOR)
        result: list[Tokens] = []
        start = answer.index(_SEPARATOR) + 1
        while start < len(answer):  # slices, since a loop over millions of tokens would block the event loop for seconds
            end = answer.index(_SEPARATOR, start)
            result.append(pack(answer[start:end]))
            start = end + 1
        if len(result) != len(texts):
            raise BackendFaultError(f"llama-server tokenized {len(result)} texts of {len(texts)}; use another version of it")
        return result

    async def _isolate(self, texts: Sequence[TextInput], isolation: Isolation) -> list[Tokens]:
        """Prepare the engine for a batch. Return a filler text if the batch, or its last pass, is too small."""
        size = sum(map(_least_size, texts))
        is_long = len(texts) == 1 and size + _MOST_SPECIAL >= TILE
        if not is_long and size > _FEW_BYTES:
            return []
        filler, *counted = await self.tokenize([_FILLER, *(text for text in texts if isinstance(text, str))])
        tokens = sum(map(len, counted)) + sum(len(text) for text in texts if not isinstance(text, str))
        if is_long and tokens >= TILE:
            # The tiles depend on the place of the text, which is the same only in an empty context. But a slot keeps its last
            # text until it gets another one.
            await asyncio.gather(*(self._erase(slot) for slot in range(isolation.slots)))
            # The filler may lie before the text. A whole tile of it leaves the bounds of the other tiles where they are.
            return [_stretch(filler, TILE)] if missing_tile(tokens, isolation.pass_tokens) else []
        return [filler] if tokens < _FEW_TOKENS else []

    async def _erase(self, slot: int) -> None:
        """Erase the last text of a slot, once that is computed."""
        try:
            await self._post(f"/slots/{slot}?action=erase", {})
        except BackendFaultError as error:
            raise SlotsError(error.message) from None

    async def _post(self, path: str, question: dict[str, object]) -> bytes:
        try:
            data = msgspec.json.encode(question)
        except UnicodeEncodeError:  # its message quotes the text
            raise InvalidTextError("a text is not valid Unicode (it has a lone surrogate); replace or remove it") from None
        status, body = await self._connections.post(path, data, limit=_ANSWER_BYTES + _BYTES_A_BYTE * len(data))
        if status != _OK:
            raise self._explain(path, status, body)
        return body

    def _explain(self, path: str, status: int, body: bytes) -> TextTooLongError | BackendFaultError:
        """Return our error for an error answer."""
        try:
            error = msgspec.json.decode(body, type=_ErrorBody).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = _Error()
        tokens = error.n_prompt_tokens
        if match := _TOO_LARGE.match(error.message):
            tokens = int(match[1])
        if tokens is None:
            # Only a plain name is quoted, since anything else may contain a user's text.
            kind = f" ({error.type})" if error.type.isidentifier() else ""
            return BackendFaultError(
                f"llama-server answered {path} with HTTP status {status}{kind}; logs/llama-server.log may say why"
            )
        return TextTooLongError(
            f"a text has {tokens:,} tokens and at most {self.max_tokens:,} are read at once; shorten or split it",
            metadata={"tokens": str(tokens), "limit": str(self.max_tokens)},
        )


def _least_size(text: TextInput) -> int:
    """Return the bytes of a text, which are never fewer than its tokens. For a list of tokens, return a comparable size."""
    return len(text.encode(errors="replace")) if isinstance(text, str) else _FEW_BYTES // _FEW_TOKENS * len(text)


def _stretch(text: Tokens, length: int) -> Tokens:
    """Return a text of `length` tokens. It repeats the given one, and ends like it."""
    return pack([*islice(cycle(text), length - 1), text[-1]])


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut texts into parts of about `_TOKENIZE_BYTES`."""
    start = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > _TOKENIZE_BYTES:
            yield texts[start:index]
            start, size = index, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def decode(body: bytes, kind: type[_T]) -> _T:
    """Return an answer of the server.

    Raises:
        BackendFaultError: It has another form.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BackendFaultError("llama-server gave an answer that is not of the expected form") from None
