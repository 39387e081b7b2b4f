"""`llama-server --rerank` as a backend: an engine of its own that scores pairs of a query and a document.

A pair goes through the scheduler like a text. It is written as `pair` of `runed.backends.base` does, and its "vector" is one
float32, the score. The engine is never asked for embeddings, since a reranker reads past the end of its buffers then.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from runed.backends.base import PAIR_SEPARATOR, EmbeddingBatch, TextInput, Tokens, pack, pair
from runed.backends.engine.interface import EngineInterface
from runed.backends.likeness import score_likeness
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.command import LlamaCommand
from runed.backends.llama.http import LlamaHTTP, Usage, decode
from runed.domain.model_spec import ModelKind
from runed.errors import BackendFaultError

_UNTOLD = -1
"""A number in place of a special token around the texts of a pair. No token has a negative id."""

_PLAIN = "a"
"""A text of one token or a few, to find the number of special tokens with."""

_LOST = -1e6
"""The score that llama-server gives if it has no result."""

_SCORE = struct.Struct("<f")


class _Result(msgspec.Struct):
    index: int
    relevance_score: float  # not a number is null in JSON, which is refused


class _Ranking(msgspec.Struct):
    results: list[_Result]
    usage: Usage


class _Content(msgspec.Struct):
    content: str


class RerankHTTP(LlamaHTTP):
    """Talks to one `llama-server --rerank`.

    Args:
        socket: The server's UNIX socket.
        max_tokens: The largest number of tokens of one pair.
        template: The text that the model reads, with "{query}" and "{document}"; "" if it has none.
    """

    samples: ClassVar[Sequence[str]] = (
        pair("runed", "a daemon"),
        pair("two words", "A text of some length, with digits 0123 and signs."),
        pair("two words", "word " * 100),
        pair("Which is the last?", "The last of the four."),
    )

    def __init__(self, socket: Path, *, max_tokens: int, template: str) -> None:
        super().__init__(socket, dim=1, max_tokens=max_tokens)
        self._template = template
        self._special_count: int | None = None

    def likeness(self, one: bytes, other: bytes) -> float:
        """Compare two scores; see `score_likeness`."""
        return score_likeness(one, other)

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return as many tokens of each pair as `embed` reads. Of a text that is no pair, return its own without special ones.

        Raises:
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        if self._template:
            read = [self._fill(text) if PAIR_SEPARATOR in text else text for text in texts]
            return await super().tokenize_plainly(read, parse_special=True)
        parts = list(dict.fromkeys(part for text in texts for part in text.split(PAIR_SEPARATOR, 1)))
        tokens = dict(zip(parts, await super().tokenize_plainly(parts, parse_special=False), strict=True))
        special = pack([_UNTOLD]) * await self._count_special()
        return [
            tokens[query] + special + tokens[document] if is_pair else tokens[query]
            for query, is_pair, document in (text.partition(PAIR_SEPARATOR) for text in texts)
        ]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without a character of which only some bytes are there.

        Raises:
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        body = await self._post("/detokenize", {"tokens": list(tokens)})
        # llama.cpp writes half a character as it is, which is no JSON then.
        return decode(body.decode(errors="ignore").encode(), _Content).content.replace("\ufffd", "").strip()

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Score pairs. Return one score a pair, in their order, each checked.

        Raises:
            TextTooLongError: A pair has more tokens than the server takes.
            BackendFaultError: The answer is not one finite score for each pair.
            ConnectionLostError: There was no complete answer.
        """
        by_query: dict[str, list[int]] = {}
        documents = []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise BackendFaultError("the context of this reranker is too small for the self-test; use another model")
            query, _, document = text.partition(PAIR_SEPARATOR)
            by_query.setdefault(query, []).append(index)
            documents.append(document)
        scores, tokens = [b""] * len(texts), 0
        for query, indices in by_query.items():
            ranking = await self._rank(query, [documents[index] for index in indices])
            for result in ranking.results:
                scores[indices[result.index]] = _SCORE.pack(result.relevance_score)
            tokens += ranking.usage.prompt_tokens
        return EmbeddingBatch(scores, tokens)

    async def _rank(self, query: str, documents: Sequence[str]) -> _Ranking:
        ranking = decode(await self._post("/v1/rerank", {"query": query, "documents": documents}), _Ranking)
        if sorted(result.index for result in ranking.results) != list(range(len(documents))):
            raise BackendFaultError(f"llama-server answered {len(ranking.results)} scores to {len(documents)} documents")
        if any(result.relevance_score <= _LOST for result in ranking.results):
            raise BackendFaultError("llama-server lost a score")
        return ranking

    def _fill(self, text: str) -> str:
        """Return what the engine reads of a pair: it fills the template in this order."""
        query, _, document = text.partition(PAIR_SEPARATOR)
        return self._template.replace("{query}", query).replace("{document}", document)

    async def _count_special(self) -> int:
        """Return the number of special tokens of a pair. Models differ in them, and only the engine knows."""
        if self._special_count is None:
            [plain] = await super().tokenize_plainly([_PLAIN], parse_special=False)
            self._special_count = (await self._rank(_PLAIN, [_PLAIN])).usage.prompt_tokens - 2 * len(plain)
            if self._special_count < 0:
                raise BackendFaultError("llama-server counts other tokens than it scores; use another version of it")
        return self._special_count


class LlamaReranker(LlamaBackend):
    """Scores pairs with a `llama-server --rerank` child. It has the arguments of `LlamaBackend`."""

    _kind: ClassVar[ModelKind] = ModelKind.RERANK

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See `PairBackend.detokenize`."""

        def question(http: EngineInterface) -> Awaitable[str]:
            assert isinstance(http, RerankHTTP)
            return http.detokenize(tokens)

        return await self._ask(question)

    def _connect(self, command: LlamaCommand) -> LlamaHTTP:
        return RerankHTTP(command.socket, max_tokens=command.info.max_tokens, template=self._metadata.rerank_template)
