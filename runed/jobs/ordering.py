"""The order of rows. The daemon answers the texts of a job in any order; the output has the order of the input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Unpack

from runed.errors import BackendFaultError, InvalidRequestError, RequestTooLargeError, RunedError
from runed.jobs.inputs import Item, Source
from runed.jobs.row import Row

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions
    from runed.client.types import Embedding

WINDOW = 4096
"""Most texts between the first unanswered text and the last text sent. Their vectors wait in memory. The limit is hardly
ever reached, since the daemon answers every text soon."""

OF_THE_TEXT = (InvalidRequestError, RequestTooLargeError, BackendFaultError)
"""Errors that a single text can cause. Other texts may succeed."""

_READING_STEP = 5000
"""Texts between two reports of progress during the first reading."""

NOTHING = b""
"""Hash of no texts; see `link`."""


class Streaming(Protocol):
    """The part of `runed.Client` that embeds."""

    def embed_stream(
        self, items: Iterable[tuple[int, str]], **options: Unpack[EmbedOptions]
    ) -> Iterator[tuple[int, Embedding | RunedError]]:
        """Embed pairs of a number and a text. Results come in any order."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of the first reading of the input.

    Attributes:
        count: The number of texts.
        inputs: The hash of all texts and ids.
        inputs_done: The hash of the texts and ids that an earlier run has done; empty if the input has fewer.
    """

    count: int
    inputs: bytes
    inputs_done: bytes


def link(previous: bytes, item: Item) -> bytes:
    """Return the hash of all items up to this one. With it, two inputs can be compared up to any text.

    Args:
        previous: The hash of the items before.
        item: The item.
    """
    problem = item.problem.reason if item.problem else ""
    sizes = f"{len(item.id)},{problem},".encode()
    return hashlib.sha256(previous + sizes + item.id + item.text.encode()).digest()


def survey(
    source: Source, *, done: int, keep_going: bool, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Survey:
    """Read and check all of the input.

    Args:
        source: The input.
        done: The number of texts that an earlier run has done.
        keep_going: Whether a text that cannot be embedded is accepted.
        on_progress: Called now and then with the number of texts that were read, and 0.

    Raises:
        InvalidRequestError: A text cannot be embedded, and `keep_going` is not set.
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
        if count % _READING_STEP == 0:
            on_progress(count, 0)
    return Survey(count, inputs, inputs_done)


class InOrder:
    """Embeds the texts of a job and yields its rows in the order of the texts.

    If `WINDOW` texts wait behind an unanswered one, the stream sends no more, and ends when all are answered. Another stream
    then embeds the rest.

    Args:
        client: The client that embeds.
        source: The input.
        surveyed: The result of its first reading.
        done: The number of texts to skip. An earlier run has done them.
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
        """Yield the rows.

        Args:
            options: The options of `runed.Client.embed_stream`.

        Raises:
            RunedError: The daemon failed, or the input was changed after its first reading.
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
        """Yield the texts that the stream sends."""
        while self._read - self._given < WINDOW:
            # Texts that were appended to a file after the first reading are ignored.
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
    """Add the place of the text to an error, since the daemon knows only its number."""
    if isinstance(outcome, OF_THE_TEXT):
        return outcome.retold(f"{origin}: {outcome.message}")
    return outcome


def _without_text(item: Item) -> Item:
    return Item("", item.origin, item.id, item.problem)
