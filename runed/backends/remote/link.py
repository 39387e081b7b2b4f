"""Questions to an engine on another machine, in the words of its API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from runed.backends.base import EmbeddingBatch, Tokens
from runed.backends.remote.answers import Vectors, check, read_openai, read_tei
from runed.backends.remote.discovery import Found, discover
from runed.backends.remote.http import Answer, MakeTransport, RefusedError, RemoteHTTP
from runed.backends.remote.refusals import Refusal, why
from runed.backends.remote.space import agree
from runed.backends.remote.tokens import tokenize
from runed.errors import TextTooLongError
from runed.own_models import RemoteModel

_VECTOR_BYTES = 512 * 1024
"""The most bytes of one vector in an answer: 20,000 numbers of 25 digits."""

_MORE = " Beneath the bridge, seven bakers counted copper kettles."
"""What is put behind a text to find out whether its end is read."""

_SHARE = 16
"""`_MORE` is repeated until the text is at most this many times as long."""

_SAME = 1 - 1e-6
"""Cosine from which on two vectors are those of the same tokens. In company, an engine rounds differently."""


class Link:
    """Asks one engine for vectors and tokens. Batches that are too large for it are halved.

    Args:
        remote: The engine.
        make_transport: Makes what sends requests.

    Attributes:
        http: What sends requests.
        found: What answers; None before `discover`.
        max_tokens: The most tokens of a text; 0 if nobody tells them.
        most: The most texts of a request that the engine takes, as far as is known.
        scales: Whether vectors were not of norm 1, and were scaled.
        is_new: Whether an answer came over a new connection since the last probe.
    """

    def __init__(self, remote: RemoteModel, make_transport: MakeTransport) -> None:
        self.http = RemoteHTTP(remote, make_transport)
        self.found: Found | None = None
        self.max_tokens = remote.max_tokens
        self.most = remote.batch
        self.scales = False
        self.is_new = False
        self._remote = remote
        self._base64 = True

    async def discover(self) -> Found:
        """Find out what answers, and return it; see `discovery.discover` for the errors."""
        found = self.found = await discover(self.http, self._remote)
        self.max_tokens = min(filter(None, (self._remote.max_tokens, found.max_tokens)), default=0)
        self.most = min(self._remote.batch, found.batch or self._remote.batch)
        return found

    async def embed(self, texts: Sequence[str], dim: int = 0) -> EmbeddingBatch:
        """Embed texts, each by itself that the engine could cut without telling it.

        Args:
            texts: The texts.
            dim: The number of values that each vector must have; 0 for as many as the first one.

        Raises:
            PassingError, RefusedError, BackendUnavailableError: As `RemoteHTTP.get`.
            WrongAnswerError: The answer makes no sense.
            TextTooLongError: A text is longer than the engine reads.
            BackendFaultError: A vector is not finite, or has no direction.
        """
        alone = {index: text for index, text in enumerate(texts) if self._may_be_cut(text)}
        rest = [index for index in range(len(texts)) if index not in alone]
        batches = [rest[start : start + self.most] for start in range(0, len(rest), self.most)]
        answers = [await self._halving([texts[index] for index in batch]) for batch in batches]
        answers += [await self._whole(text) for text in alone.values()]
        found = dict(zip(chain(*batches, alone), (row for answer in answers for row in answer.rows), strict=True))
        rows = [found[index] for index in range(len(texts))]
        vectors, scaled = check(rows, dim or len(rows[0]))
        self.scales = self.scales or scaled
        told = all(answer.tokens for answer in answers)
        return EmbeddingBatch(vectors, sum(answer.tokens for answer in answers) if told else 0)

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text, including special ones. The errors are those of `embed`."""
        assert self.found is not None
        return await tokenize(self.http, self.found, texts)

    async def _whole(self, text: str) -> Vectors:
        """Return the vector of a text that the engine could cut without telling it. One that it cuts is refused."""
        assert self.found is not None
        if self.found.tells_tokens:
            answer = await self._halving([text])
            is_cut = answer.tokens >= self.max_tokens
        else:
            # What comes behind the cut changes nothing. As much as this would change any vector.
            more = _MORE * (1 + len(text) // (_SHARE * len(_MORE)))
            both = await self._halving([text, text + more])
            (alone, longer), _ = check(both.rows, len(both.rows[0]))
            answer, is_cut = Vectors(both.rows[:1], 0), agree(alone, longer, 1, least=_SAME)
        if is_cut:
            raise self._too_long()
        return answer

    async def _halving(self, texts: Sequence[str]) -> Vectors:
        try:
            return await self._ask(texts)
        except RefusedError as error:
            match why(error, len(texts)):
                case Refusal.MANY:
                    pass
                case Refusal.LONG:
                    raise self._too_long() from None
                case Refusal.ENCODING if self._base64:
                    self._base64 = False
                    return await self._halving(texts)
                case _:
                    raise
        middle = len(texts) // 2
        first = await self._halving(texts[:middle])
        self.most = min(self.most, len(texts) - middle)  # only now: the engine does take fewer
        second = await self._halving(texts[middle:])
        told = first.tokens and second.tokens
        return Vectors([*first.rows, *second.rows], first.tokens + second.tokens if told else 0)

    async def _ask(self, texts: Sequence[str]) -> Vectors:
        assert self.found is not None
        limit = _VECTOR_BYTES * (1 + len(texts))
        if self.found.api == "tei":
            question = {"inputs": texts, "normalize": True, "truncate": False}
            answer = await self.http.post(f"{self.found.base}/embed", question, limit=limit)
            vectors = read_tei(answer.body, len(texts), answer.headers)
        else:
            encoding = "base64" if self._base64 else "float"
            question = {"model": self.found.model, "input": texts, "encoding_format": encoding}
            answer = await self.http.post(f"{self.found.base}/embeddings", question, limit=limit)
            vectors = read_openai(answer.body, len(texts))
        self._note(answer)
        return vectors if self.found.tells_tokens else replace(vectors, tokens=0)

    def _may_be_cut(self, text: str) -> bool:
        """Return whether the engine could read a part of a text only, and not tell it."""
        silent = self.found is not None and self.found.cuts_silently and self.max_tokens > 0
        return silent and len(text.encode()) >= self.max_tokens  # no tokenizer makes more tokens than bytes

    def note_probe(self) -> None:
        """Note that the space was proven over the present connections."""
        self.is_new = self.http.was_lost = False

    def _note(self, answer: Answer) -> None:
        self.is_new = self.is_new or answer.is_first

    def _too_long(self) -> TextTooLongError:
        limit = f" (its limit is {self.max_tokens:,} tokens)" if self.max_tokens else ""
        counts = self.found is not None and self.found.tokenizes
        remedy = "" if counts else ". Nobody can cut it here, since the engine tells no tokens"
        return TextTooLongError(
            f"a text is longer than the engine at {self._remote.url} reads{limit}; split or shorten it{remedy}",
            metadata={"limit": str(self.max_tokens)} if self.max_tokens else {},
        )
