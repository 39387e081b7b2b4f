"""One backend, shared: checks texts, splits batches into micro-batches and lets the engine sleep when nobody embeds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from runed.backend.base import Embedder, EmbeddingBatch
from runed.engine.idle import IdleClock
from runed.errors import BatchTooLargeError, EmptyBatchError, EmptyTextError, InvalidTextError, TextTooLongError
from runed.log import get_logger
from runed.processes import release_free_memory

MAX_BATCH_TEXTS = 2048
"""The most texts of one call."""

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The largest request message in bytes."""

MICRO_BATCH_TEXTS = 16
MICRO_BATCH_BYTES = 1024
"""What goes to the backend at once: several short texts, whose requests would cost more than their vectors, or one long one.
Small, because the texts of other callers wait for it, and because the backend notices a caller that went away only between such
pieces (facts.md, section 1)."""

CONCURRENT_MICRO_BATCHES = 2
"""One that is computed and one that is ready to follow it; more would only queue where nobody can be served out of turn."""

MAX_TOKENS_PER_BYTE = 2
"""No text has more tokens than this times its UTF-8 bytes, plus the special tokens. A byte-level tokenizer (Qwen3) makes at
most one token of a byte; WordPiece (BERT) at most one of a code point of the decomposed text, and canonical decomposition makes
at most three code points of two bytes."""

SPECIAL_TOKENS = 2
"""The most special tokens that a tokenizer adds to a text (BERT: CLS and SEP)."""

_log = get_logger(__name__)


class Engine:
    """Turns texts into vectors for many callers at once.

    Args:
        backend: What computes; the engine owns it from now on.
        idle_timeout: Seconds without an embedding after which the backend is stopped; 0 never.
    """

    def __init__(self, backend: Embedder, *, idle_timeout: float) -> None:
        self._backend = backend
        self._idle_timeout = idle_timeout
        self._idle = IdleClock(idle_timeout, self._suspend)
        # asyncio's semaphore wakes its waiters in the order in which they came, so that callers take turns micro-batch by
        # micro-batch and a short call never stands behind the whole of a long one.
        self._turns = asyncio.Semaphore(CONCURRENT_MICRO_BATCHES)

    @property
    def backend(self) -> Embedder:
        """The backend, to be looked at."""
        return self._backend

    async def start(self) -> None:
        """Start the backend ahead of the first text.

        Raises:
            BackendError: It did not come up.
        """
        with self._idle.busy():
            await self._backend.start()

    async def embed(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Embed the texts of one call; nothing is computed unless every text can be.

        Args:
            texts: 1 to `MAX_BATCH_TEXTS` texts, none of them blank.

        Returns:
            One vector a text, in order, and the number of tokens of all texts.

        Raises:
            InvalidRequestError: The batch or one of its texts cannot be embedded; says which and why.
            BackendError: The backend failed.
        """
        _check_texts(texts)
        vectors: list[bytes] = []
        tokens = 0
        with self._idle.busy():
            await self._check_lengths(texts)
            for start, end in _micro_batches(texts):
                async with self._turns:
                    batch = await self._backend.embed(texts[start:end])
                vectors += batch.vectors
                tokens += batch.tokens
        return EmbeddingBatch(vectors, tokens)

    async def close(self) -> None:
        """Stop the clock and the backend."""
        await self._idle.close()
        await self._backend.stop()

    async def _check_lengths(self, texts: Sequence[str]) -> None:
        limit = self._backend.model.max_tokens
        # One after another: all at once, they would keep the requests of other callers from the backend.
        for index, text in enumerate(texts):
            if len(text.encode()) * MAX_TOKENS_PER_BYTE + SPECIAL_TOKENS <= limit:
                continue
            tokens = await self._backend.count_tokens(text)
            if tokens > limit:
                raise TextTooLongError(
                    f"{_name(index, texts)} has {tokens} tokens, the limit is {limit}; split or shorten it",
                    metadata={"tokens": str(tokens), "limit": str(limit), "index": str(index)},
                )

    async def _suspend(self) -> None:
        _log.info("engine suspended", idle_seconds=self._idle_timeout)
        await self._backend.stop()
        release_free_memory()


def _check_texts(texts: Sequence[str]) -> None:
    if not texts:
        raise EmptyBatchError("the batch holds no text; send at least one")
    if len(texts) > MAX_BATCH_TEXTS:
        raise BatchTooLargeError(
            f"the batch holds {len(texts)} texts, the limit is {MAX_BATCH_TEXTS}; send several batches",
            metadata={"texts": str(len(texts)), "limit": str(MAX_BATCH_TEXTS)},
        )
    for index, text in enumerate(texts):
        if not text or text.isspace():
            raise EmptyTextError(
                f"{_name(index, texts)} is empty or only white space, so that its vector would mean nothing; leave it out",
                metadata={"index": str(index)},
            )
        if (position := text.find("\0")) >= 0:
            raise InvalidTextError(
                f"{_name(index, texts)} has a NUL character at position {position}; remove it, or check that this is text",
                metadata={"index": str(index), "position": str(position)},
            )


def _name(index: int, texts: Sequence[str]) -> str:
    return "the text" if len(texts) == 1 else f"text {index} of the batch (counted from 0)"


def _micro_batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut a batch into ranges of at most `MICRO_BATCH_TEXTS` texts and, but for a single long text, `MICRO_BATCH_BYTES`."""
    start = 0
    size = 0
    for end, text in enumerate(texts):
        length = len(text.encode())
        if end > start and (end - start == MICRO_BATCH_TEXTS or size + length > MICRO_BATCH_BYTES):
            yield start, end
            start, size = end, 0
        size += length
    yield start, len(texts)
