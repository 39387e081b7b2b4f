"""The way of the texts of a job through the daemon and back into their order, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Unpack

from runed.errors import BackendFaultError, InvalidRequestError, RequestTooLargeError, RunedError
from runed.jobs.formats import Row
from runed.jobs.inputs import Item, Source

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions
    from runed.client.types import Embedding

WINDOW = 4096
"""How many texts may be between the first one that is not answered and the last one sent; their vectors wait in memory. The
daemon answers those of like length together and each of them soon, so that few are ever waited for."""

OF_THE_TEXT = (InvalidRequestError, RequestTooLargeError, BackendFaultError)
"""Errors that a single text can be the cause of, so that the others are worth going on with."""

NOTHING = b""
"""Stands for no texts at all."""


class Streaming(Protocol):
    """The part of `runed.Client` that embeds."""

    def embed_stream(
        self, items: Iterable[tuple[int, str]], **options: Unpack[EmbedOptions]
    ) -> Iterator[tuple[int, Embedding | RunedError]]:
        """Embed pairs of a number and a text; results come in any order."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first reading of the input tells.

    Attributes:
        count: The number of texts.
        inputs: Stands for all of them and their ids.
        inputs_done: Stands for as many as are done already; empty if there are not so many.
    """

    count: int
    inputs: bytes
    inputs_done: bytes


def link(previous: bytes, item: Item) -> bytes:
    """Give what stands for all items up to and with one, so that two inputs can be compared up to any text.

    Args:
        previous: What stands for those before.
        item: The one.
    """
    problem = item.problem.reason if item.problem else ""
    sizes = f"{len(item.id)},{problem},".encode()
    return hashlib.sha256(previous + sizes + item.id + item.text.encode()).digest()


def survey(source: Source, *, done: int, keep_going: bool) -> Survey:
    """Read all of the input.

    Args:
        source: The input.
        done: The number of texts that are done already.
        keep_going: Whether a text that cannot be embedded is no reason to stop.

    Raises:
        InvalidRequestError: There is one, and it is.
    """
    inputs = inputs_done = NOTHING
    count = 0
    for item in source():
        if item.problem and not keep_going:
            raise item.problem
        inputs = link(inputs, item)
        count += 1
        if count == done:
            inputs_done = inputs
    return Survey(count, inputs, inputs_done)


class InOrder:
    """Gives the rows of a job in the order of its texts.

    A stream ends where the results lag so far behind that no more of them should wait in memory; another one goes on with the
    texts that follow.

    Args:
        client: Embeds the texts.
        source: The input.
        surveyed: What its first reading told.
        done: The number of texts to leave out, since they are done already.
    """

    def __init__(self, client: Streaming, source: Source, surveyed: Survey, *, done: int) -> None:
        self._client = client
        self._surveyed = surveyed
        self._items = source()
        self._inputs = NOTHING
        self._read = 0
        self._given = done
        self._waiting: dict[int, tuple[Item, bytes]] = {}
        self._outcomes: dict[int, Embedding | RunedError] = {}
        self._exhausted = False
        for _ in range(done):
            self._next_item()

    def rows(self, **options: Unpack[EmbedOptions]) -> Generator[Row]:
        """Give the rows.

        Args:
            options: As of `runed.Client.embed_stream`.

        Raises:
            RunedError: The daemon failed, or the input is not what it was at its first reading.
        """
        while not self._exhausted:
            for index, outcome in self._client.embed_stream(self._feed(), **options):
                if index not in self._waiting or index in self._outcomes:
                    raise RunedError("the daemon answered a text twice, or one that it was not sent")
                self._outcomes[index] = _located(outcome, self._waiting[index][0].origin)
                yield from self._in_turn()
            yield from self._in_turn()
            if self._waiting:
                raise RunedError(f"the daemon left {len(self._waiting)} texts unanswered; try again")
        if (self._read, self._inputs) != (self._surveyed.count, self._surveyed.inputs):
            raise RunedError("the input was changed while it was read; do so when nobody writes to it")

    def _feed(self) -> Iterator[tuple[int, str]]:
        """Give the texts to the stream."""
        while self._read - self._given < WINDOW:
            # What was appended to a file since the first reading is left for another time.
            item = self._next_item() if self._read < self._surveyed.count else None
            if item is None:
                self._exhausted = True
                return
            index = self._read - 1
            self._waiting[index] = (_without_text(item), self._inputs)
            if item.problem:
                self._outcomes[index] = item.problem
            else:
                yield index, item.text

    def _next_item(self) -> Item | None:
        item = next(self._items, None)
        if item is not None:
            self._inputs = link(self._inputs, item)
            self._read += 1
        return item

    def _in_turn(self) -> Iterator[Row]:
        while self._given in self._outcomes:
            index = self._given
            item, inputs = self._waiting.pop(index)
            yield Row(index, item.id, item.origin, inputs, self._outcomes.pop(index))
            self._given += 1


def _located(outcome: Embedding | RunedError, origin: str) -> Embedding | RunedError:
    """Say which text an error is about; the daemon only knows a number of ours."""
    if isinstance(outcome, OF_THE_TEXT):
        return type(outcome)(f"{origin}: {outcome.message}", metadata=outcome.metadata, retry_after=outcome.retry_after)
    return outcome


def _without_text(item: Item) -> Item:
    return Item("", item.origin, item.id, item.problem)
