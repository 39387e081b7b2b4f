"""Ranks documents by their relevance to a query. A pair of both goes the way of a text, and its score that of a vector."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from runed.backends.base import PairBackend, Tokens, pair
from runed.domain.model import reads_last
from runed.domain.ranking import Ranked, RerankAnswer, RerankOptions, relevance
from runed.domain.requests import Embedding, EmbedOptions, Lane, Truncate
from runed.errors import EmptyTextError, TextTooLongError
from runed.scheduling.claims import Claim, redeem
from runed.scheduling.preparing import Name, Prepared, Preparer, check_count, check_text
from runed.scheduling.scheduler import INTERACTIVE_BATCH, Scheduler
from runed.turns import breathe_before

_SCORE = struct.Struct("<f")


def check_query(query: str) -> None:
    """Refuse a query that means nothing.

    Raises:
        InvalidRequestError: It is blank, not valid, or very long.
    """
    try:
        check_text(query, "the query", {})
    except EmptyTextError as error:
        raise error.retold("the query is empty or only white space; send a question or some words") from None


@dataclass(eq=False, slots=True)
class _Document(Claim):
    """The claim to the score of one document."""

    @property
    def name(self) -> Name:
        """See `Claim.name`."""
        return f"document {self.index} (counted from 0)", {"index": str(self.index)}


class PairPreparer(Preparer):
    """Prepares pairs of a query and a document.

    Args:
        backend: The reranker.
    """

    def __init__(self, backend: PairBackend) -> None:
        super().__init__(backend)
        self._pairs = backend

    def may_be_too_long(self, text: str) -> bool:  # noqa: ARG002 # every pair is counted, whatever it is
        """Return True: models put different words around a pair, so that only the engine can count it."""
        return True

    async def _fit(
        self, text: str, tokens: Tokens, prompt: str, truncate: Truncate, name: Callable[[], Name]
    ) -> Prepared | TextTooLongError:
        limit = self._pairs.model.max_tokens
        total, size = len(tokens), len(text.encode())
        if total <= limit:
            return Prepared(text, total, exact=True, total_tokens=0, size=size)
        words, where = name()
        facts = {"tokens": str(total), "limit": str(limit)} | where
        if truncate is Truncate.NONE:
            return TextTooLongError(
                f"{words} has {total} tokens together with the query, the limit is {limit}; split or shorten it, or ask for "
                "truncation",
                metadata=facts,
            )
        cut = await self._cut_document(prompt, text.removeprefix(prompt), total, truncate)
        if cut is None:
            return TextTooLongError(
                f"the query leaves no room for {words} within the limit of {limit} tokens; shorten it", metadata=facts
            )
        return Prepared(cut[0], cut[1], exact=True, total_tokens=total, size=size)

    async def _cut_document(self, prompt: str, document: str, total: int, truncate: Truncate) -> tuple[str, int] | None:
        """Return the pair with the longest part of a document that fits, and its tokens. None if nothing of it would be left.

        Args:
            prompt: The query, as the first half of a pair.
            document: The document.
            total: The number of tokens of the whole pair.
            truncate: The side to cut.
        """
        [tokens] = await self._pairs.tokenize([document])
        room = len(tokens) - (total - self._pairs.model.max_tokens)
        while room > 0:
            kept = await self._pairs.detokenize(tokens[:room] if truncate is Truncate.END else tokens[-room:])
            if not kept or kept.isspace():
                return None
            [counted] = await self._pairs.tokenize([prompt + kept])
            # The text of some tokens may have other tokens, such as those of half a word.
            if (excess := len(counted) - self._pairs.model.max_tokens) <= 0:
                return prompt + kept, len(counted)
            room -= excess
        return None


class RerankScheduler(Scheduler):
    """Ranks the documents of many callers by one reranker. It has the arguments of `Scheduler`; the backend is a `PairBackend`.

    Attributes:
        backend: The reranker, for reading only.
    """

    backend: PairBackend

    async def rerank(self, query: str, documents: Sequence[str], options: RerankOptions, *, client: str) -> RerankAnswer:
        """Rank the documents of one call.

        Args:
            query: The query, not blank.
            documents: 1 to `MAX_BATCH_TEXTS` documents, none of them blank.
            options: The caller's options.
            client: The caller's name; pairs of different clients take turns.

        Raises:
            InvalidRequestError: The call, the query or a document cannot be served; nothing was computed.
            QueueFullError, ShuttingDownError, BackendError: As `Scheduler.embed`.
        """
        check_query(query)
        check_count(documents)
        asked = EmbedOptions(lane=options.lane, truncate=options.truncate)
        lane = Lane.INTERACTIVE if len(documents) <= INTERACTIVE_BATCH else Lane.BULK
        terms = replace(self._terms(asked, client, lane, strict=True), prompt=pair(query, ""))
        claims = [_Document(document, index, len(documents)) for index, document in enumerate(documents)]
        try:
            async with self._desk.claimed(claims, terms):
                items = await redeem(claims, terms)
        except EmptyTextError as error:
            raise error.retold(error.message.replace("its vector would", "its score would")) from None
        ranked = []
        for index, item in enumerate(items):
            await breathe_before(index)
            assert isinstance(item, Embedding)  # the terms are strict
            ranked.append(self._ranked(index, item))
        ranked.sort(key=lambda result: -result.raw_score)  # a stable sort keeps the order of equal ones
        self._metrics.answered(len(ranked))
        return RerankAnswer(
            results=ranked[: options.top_n or None],
            tokens=sum(result.tokens for result in ranked),
            fingerprint=terms.space.fingerprint,
            model=terms.space.model,
        )

    def _make_preparer(self) -> Preparer:
        return PairPreparer(self.backend)

    def _ranked(self, index: int, item: Embedding) -> Ranked:
        [raw] = _SCORE.unpack(item.vector)
        model = self.backend.model
        # The last step of a model that reads from left to right turns its values into a probability.
        is_probability = reads_last(model.pooling, model.architecture)
        return Ranked(
            index=index,
            score=raw if is_probability else relevance(raw),
            raw_score=raw,
            tokens=item.tokens,
            total_tokens=item.total_tokens,
            cached=item.cached,
        )
