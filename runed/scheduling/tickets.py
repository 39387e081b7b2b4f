"""Claims to vectors that are being computed, by one caller or by several."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from runed.domain.requests import Embedding, EmbedOptions, Lane, Space
from runed.domain.vectors import shorten
from runed.errors import RunedError
from runed.scheduling.queue import Computed, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What holds for all texts of one call.

    Attributes:
        options: What the caller asked for.
        lane: The queue to wait in.
        client: Who the caller is; texts of different clients take turns.
        prompt: What goes in front of each text.
        dimensions: The number of values of each vector.
        space: What the answer says of all vectors.
        streamed: Whether the texts are a stream's: they wait for room in the queue instead of being refused, and have no place
            in a batch to be told in errors.
    """

    options: EmbedOptions
    lane: Lane
    client: str
    prompt: str
    dimensions: int
    space: Space
    streamed: bool = False


class Computation:
    """A text that is being computed.

    Attributes:
        job: What waits or is computed.
        total_tokens: The number of tokens before anything was cut off, or 0 if nothing was.
        waiters: The number of tickets for it.
    """

    __slots__ = ("job", "total_tokens", "waiters")

    def __init__(self, job: Job, total_tokens: int) -> None:
        self.job = job
        self.total_tokens = total_tokens
        self.waiters = 0

    @property
    def alive(self) -> bool:
        """Whether another caller can still join: it waits, is computed, or has just been computed."""
        future = self.job.future
        return not future.done() or (not future.cancelled() and future.exception() is None)


class Ticket:
    """The claim of one caller to the vector of one text.

    Args:
        outcome: The embedding or the error, if it is known already.
        computation: What it waits for otherwise.
        dimensions: The number of values of the vector.
        shared: Whether somebody else's claim came first.
    """

    __slots__ = ("_computation", "_dimensions", "_outcome", "_shared")

    def __init__(
        self,
        *,
        outcome: Embedding | RunedError | None = None,
        computation: Computation | None = None,
        dimensions: int = 0,
        shared: bool = False,
    ) -> None:
        self._outcome = outcome
        self._computation = computation
        self._dimensions = dimensions
        self._shared = shared
        if computation:
            computation.waiters += 1

    @property
    def future(self) -> asyncio.Future[Computed] | None:
        """What to wait for, or None if the outcome is known already. Not to be cancelled: others may wait for it too."""
        return self._computation.job.future if self._computation else None

    @property
    def ready(self) -> bool:
        """Whether the outcome is known."""
        return self._computation is None or self._computation.job.future.done()

    def redeem(self) -> Embedding | RunedError:
        """Give the embedding, or the reason why there is none; `ready` must be true."""
        if self._outcome is not None:
            return self._outcome
        assert self._computation is not None
        try:
            done = self._computation.job.future.result()
            vector = shorten(done.vector, self._dimensions)
        except RunedError as error:
            return error
        except Exception:  # noqa: BLE001 # the batcher has logged it, and its text may quote what it was about
            return RunedError("the daemon failed at this text; its log says where, please report it")
        total = self._computation.total_tokens or done.tokens
        return Embedding(vector=vector, tokens=done.tokens, total_tokens=total, cached=self._shared)

    def release(self) -> None:
        """Give the claim up. A text that nobody claims any more is not computed."""
        if self._computation is None:
            return
        self._computation.waiters -= 1
        if self._computation.waiters == 0:
            self._computation.job.future.cancel()
        self._computation = None
