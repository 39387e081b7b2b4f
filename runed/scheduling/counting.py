"""Counts tokens, and replaces upper bounds of them by exact numbers."""

from __future__ import annotations

from collections.abc import Sequence

from runed.backends.base import Tokenizer, Tokens
from runed.errors import BackendFaultError, RunedError
from runed.log import describe_exception, get_logger
from runed.scheduling.queue import QueueEntry

_log = get_logger(__name__)


async def tokenize_each(texts: Sequence[str], tokenizer: Tokenizer) -> list[Tokens | RunedError]:
    """Return the tokens of each text, or the error of a text that has none. Such a text does not affect the others.

    Raises:
        BackendUnavailableError: The engine cannot be had.
    """
    try:
        return [*await tokenizer.tokenize(texts)]
    except BackendFaultError as error:
        if len(texts) == 1:
            return [error]
    return [(await tokenize_each([text], tokenizer))[0] for text in texts]


async def count(entries: Sequence[QueueEntry], tokenizer: Tokenizer) -> bool:
    """Replace bounds by exact numbers. After a failure the bounds stay, which is safe.

    Args:
        entries: Entries whose input is a text.
        tokenizer: The backend that computes them.

    Returns:
        Whether all entries have exact numbers now.
    """
    texts = [entry.input for entry in entries if isinstance(entry.input, str)]
    try:
        tokens = await tokenize_each(texts, tokenizer)
        for entry, its_tokens in list(zip(entries, tokens, strict=True)):
            if not entry.exact and not isinstance(its_tokens, RunedError):
                entry.tokens, entry.exact = len(its_tokens), True
    except Exception as error:  # noqa: BLE001 # no text fails because it could not be counted
        _log.warning("texts could not be counted", texts=len(entries), **describe_exception(error))
    return all(entry.exact for entry in entries)


def settle_tokens(batch: Sequence[QueueEntry], total: int, counts: Sequence[int] = ()) -> None:
    """Take the unknown numbers of tokens of a micro-batch from the answer, or derive a single one from the sum. Check the sum.

    Args:
        batch: The entries that were computed.
        total: The sum of their tokens, from the backend.
        counts: The tokens of each, from the backend; empty if it does not tell them.

    Raises:
        BackendFaultError: The numbers contradict each other. The vectors may belong to other texts.
    """
    for entry, tokens in zip(batch, counts, strict=False):
        if not entry.exact:
            entry.tokens, entry.exact = tokens, True
    unknown = [entry for entry in batch if not entry.exact]
    rest = total - sum(entry.tokens for entry in batch if entry.exact)
    if len(unknown) > 1:
        raise BackendFaultError(f"the tokens of {len(unknown)} texts could not be counted")
    if (rest < 1) if unknown else (rest != 0):
        _log.warning("the engine counts tokens in two ways", texts=len(batch), tokens=total, known=total - rest)
        raise BackendFaultError(f"the engine read {total:,} tokens and counted {total - rest:,} before")
    for entry in unknown:
        entry.tokens, entry.exact = rest, True
