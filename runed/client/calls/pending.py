"""The texts of a stream that wait for their outcome."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from runed_proto.runed.v1.runed_pb2 import EmbedStreamItem, EmbedStreamRequest

from runed.client.calls.steps import Outcome
from runed.client.calls.texts import check_length, encoded_length
from runed.errors import InvalidTextError, RequestTooLargeError, RunedError

K = TypeVar("K")

MAX_TEXTS = 512
"""Most texts that are taken from the caller and not answered yet."""

MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of these texts. Both limits are large enough to let the daemon sort texts by length, and small enough to be
computed again after the death of a daemon."""

MESSAGE_TEXTS = 64
"""Most texts of one message."""

MESSAGE_BYTES = 64 * 1024
"""Most bytes of the texts of one message. A longer text goes alone."""

_ITEM_OVERHEAD = 40
"""Most bytes for each text of a message besides the text itself: tags, lengths and the number."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[K]):
    key: K
    text: str
    size: int


class PendingTexts(Generic[K]):
    """The texts of one stream, numbered as they come, until they are answered.

    Attributes:
        source_ended: Whether the caller's iterator is at its end.
        source_error: The error of the caller's iterator, or None.
        taken: The number of texts taken from it.
        ready: Outcomes that the caller has not got yet.
    """

    def __init__(self) -> None:
        self.source_ended = False
        self.source_error: Exception | None = None
        self.taken = 0
        self.ready: list[tuple[K, Outcome]] = []
        self._entries: dict[int, _Entry[K]] = {}
        self._queue: deque[int] = deque()
        self._queued_bytes = self._bytes = 0

    @property
    def unanswered(self) -> int:
        """The number of texts that wait for their outcome."""
        return len(self._entries)

    @property
    def has_queued(self) -> bool:
        """Whether texts wait to be sent."""
        return bool(self._queue)

    @property
    def has_room(self) -> bool:
        """Whether another text may be taken from the caller's iterator."""
        return (
            not self.source_ended
            and self.source_error is None
            and len(self._queue) + len(self.ready) < MESSAGE_TEXTS
            and self._queued_bytes < MESSAGE_BYTES
            and len(self._entries) < MAX_TEXTS
            and self._bytes < MAX_BYTES
        )

    def add(self, item: tuple[K, str]) -> None:
        """Take a text of the caller's iterator.

        Raises:
            TypeError: The item is not a pair of an id and a text.
            ValueError: As TypeError.
        """
        # A text of two letters could be unpacked, too.
        if isinstance(item, str):
            raise TypeError("embed_stream takes pairs of an id and a text, but got a str")
        try:
            key, text = item
        except (TypeError, ValueError) as error:
            raise type(error)(f"embed_stream takes pairs of an id and a text: {error}") from None
        self.taken += 1
        try:
            size = encoded_length(text) + _ITEM_OVERHEAD
        except InvalidTextError as error:
            self.ready.append((key, error))
            return
        self._entries[self.taken] = _Entry(key, text, size)
        self._bytes += size
        self._enqueue(self.taken)

    def next_message(self, max_bytes: int) -> EmbedStreamRequest:
        """Take texts from the queue for one message. A text that is too large for any message gets its error here.

        Args:
            max_bytes: The bytes that the texts of one message may take.
        """
        message = EmbedStreamRequest()
        total = 0
        while self._queue and len(message.items) < MESSAGE_TEXTS:
            entry = self._entries[number := self._queue[0]]
            if total and total + entry.size > min(MESSAGE_BYTES, max_bytes):
                break
            self._queue.popleft()
            self._queued_bytes -= entry.size
            try:
                check_length(entry.size, max_bytes)
            except RequestTooLargeError as error:
                self.answer(number, error)
                continue
            message.items.append(EmbedStreamItem(id=str(number), text=entry.text))
            total += entry.size
        return message

    def answer(self, number: int, outcome: Outcome) -> None:
        """Record the outcome of a text.

        Raises:
            RunedError: No text of this number waits for an outcome.
        """
        entry = self._entries.pop(number, None)
        if entry is None:
            raise RunedError("the daemon answered a text that was not sent, or answered it twice")
        self._bytes -= entry.size
        self.ready.append((entry.key, outcome))

    def requeue(self) -> None:
        """Queue all unanswered texts again, for another connection."""
        self._queue.clear()
        self._queued_bytes = 0
        for number in self._entries:
            self._enqueue(number)

    def hand_over(self) -> list[tuple[K, Outcome]]:
        """Take the outcomes that are ready."""
        ready, self.ready = self.ready, []
        return ready

    def _enqueue(self, number: int) -> None:
        self._queue.append(number)
        self._queued_bytes += self._entries[number].size
