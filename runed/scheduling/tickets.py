"""Tickets: texts that are being computed, each for one claim or for several."""

from __future__ import annotations

import asyncio

from runed.domain.requests import Embedding
from runed.errors import RunedError, apology
from runed.scheduling.queue import Computed, QueueEntry


class Ticket:
    """A text that waits or is computed, held by the claims of one caller or of several.

    Args:
        entry: Its place in the queue.
        total_tokens: The number of tokens before anything was cut off, or 0 if nothing was.

    Attributes:
        entry: As above.
        total_tokens: As above.
        holders: The number of claims that hold it.
    """

    __slots__ = ("entry", "holders", "total_tokens")

    def __init__(self, entry: QueueEntry, total_tokens: int) -> None:
        self.entry = entry
        self.total_tokens = total_tokens
        self.holders = 0

    @property
    def future(self) -> asyncio.Future[Computed]:
        """The future to wait for. Do not cancel it: others may wait for it, too."""
        return self.entry.future

    @property
    def alive(self) -> bool:
        """Whether another claim can join: the text waits, is being computed, or has just been computed."""
        return not self.future.done() or (not self.future.cancelled() and self.future.exception() is None)

    def release(self) -> None:
        """Remove one holder. A text without holders is not computed."""
        self.holders -= 1
        if self.holders == 0:
            self.future.cancel()

    def redeem(self, *, shared: bool) -> Embedding:
        """Return the embedding with all dimensions of the model. The future must be done.

        Args:
            shared: Whether another claim came first.

        Raises:
            RunedError: The text has no embedding.
        """
        try:
            done = self.future.result()
        except RunedError:
            raise
        except Exception as error:  # noqa: BLE001 # the batcher has logged it, and its text may quote the caller's
            raise apology(error) from None
        return Embedding(vector=done.vector, tokens=done.tokens, total_tokens=self.total_tokens or done.tokens, cached=shared)
