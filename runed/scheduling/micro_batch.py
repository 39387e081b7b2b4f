"""Cuts a micro-batch: the waiting texts that go to the engine together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from runed.backends.base import BatchLimits


class _Counted(Protocol):
    """A text with a number of tokens, or an upper bound of it."""

    @property
    def tokens(self) -> int: ...


T = TypeVar("T", bound=_Counted)


def cut_micro_batch(entries: Iterable[T], limits: BatchLimits) -> list[T]:
    """Return the first entries that fit into one micro-batch.

    Args:
        entries: The entries, the next one first. At most one more is read than fits.
        limits: The limits of a micro-batch. A first entry of more tokens is returned alone.

    Returns:
        The entries in their order; empty if there are none.
    """
    batch: list[T] = []
    tokens = 0
    for entry in entries:
        tokens += entry.tokens
        if batch and tokens > limits.tokens:
            break
        batch.append(entry)
        if len(batch) == limits.texts:
            break
    return batch
