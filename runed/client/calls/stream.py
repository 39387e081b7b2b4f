"""What a stream of embeddings takes, step by step and without doing it: the twin of `flow` for `embed_stream`.

The texts of the caller's iterator become numbered entries of a `Job`. An entry lives until it is answered, also over the end of
a connection: another one sends again what was not answered, so that each text has exactly one outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError
from runed_proto.runed.v1.runed_pb2 import EmbedStreamItem, EmbedStreamRequest, EmbedStreamResponse

from runed.client.calls import answers
from runed.client.calls.flows import PASSING, Ensure, Flow, Flows, Send, Sleep, Tries
from runed.client.calls.patience import Deadline
from runed.client.calls.texts import check_length, encoded_length
from runed.client.options import Options
from runed.client.types import Embedding
from runed.client.wire.stream import StreamExchange, not_of_runed
from runed.errors import BootstrappingError, InvalidTextError, RequestTooLargeError, RunedError, ShuttingDownError

K = TypeVar("K")
T = TypeVar("T")
Outcome: TypeAlias = Embedding | RunedError

METHOD = "EmbedStream"

MAX_TEXTS = 512
MAX_BYTES = 4 * 1024 * 1024
"""Texts that are taken from the caller and not answered yet, and their bytes. Enough for the daemon to put texts of like length
together, and little enough to be computed again where a daemon dies."""

MESSAGE_TEXTS = 64
MESSAGE_BYTES = 64 * 1024
"""Texts of one message, and their bytes; a longer text goes alone."""

MAX_ITEM_TRIES = 5
"""How often a single text may meet an error that another try may help against, before it becomes its outcome."""

_ITEM_OVERHEAD = 40
"""Bytes at most beside the text itself for each text of a message: tags, lengths and the number."""

_ITEM_PAUSE = 1.0
"""Seconds before a text is sent again whose error may pass."""

_GOODBYE = 1.0
"""Seconds that the daemon gets to end a stream whose texts are all answered."""


class Connection(Protocol):
    """A connection that carries one stream.

    Attributes:
        exchange: Its state.
    """

    exchange: StreamExchange

    def close(self) -> None:
        """Give up what is still open of the stream, and close; closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection for a stream; the result is a `Connection`.

    Attributes:
        exchange: The state that it begins with.
        timeout: Seconds that it may take; None means no limit.
    """

    exchange: StreamExchange
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Turn:
    """Let both sides go on: write what the exchange gives, take texts that the job has room for, and bytes of the daemon.

    Ends with the first of the two. The result are the bytes, b"" at the end of the connection, or None.

    Attributes:
        connection: The connection; None means that only texts can come.
        timeout: Seconds after which nothing need have come; None means no limit.
    """

    connection: Connection | None
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Give(Generic[K]):
    """Give the caller what became ready; there is no result.

    Attributes:
        results: The caller's names of the texts with their outcomes.
    """

    results: list[tuple[K, Outcome]]


UploadFlow: TypeAlias = Generator[Send | Sleep | Ensure | Connect | Turn, Any, T]
StreamFlow: TypeAlias = Generator[Send | Sleep | Ensure | Connect | Turn | Give[K], Any, None]


@dataclass(slots=True)
class _Entry(Generic[K]):
    key: K
    text: str
    size: int
    tries: int = 0


class Job(Generic[K]):
    """The texts of one stream that are not answered yet.

    Attributes:
        source_ended: Whether the caller's iterator is at its end.
        taken: The number of texts taken from it.
        ready: Outcomes that the caller has yet to get.
    """

    def __init__(self) -> None:
        self.source_ended = False
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
            and len(self._queue) + len(self.ready) < MESSAGE_TEXTS
            and self._queued_bytes < MESSAGE_BYTES
            and len(self._entries) < MAX_TEXTS
            and self._bytes < MAX_BYTES
        )

    def add(self, item: tuple[K, str]) -> None:
        """Take a text of the caller's iterator.

        Raises:
            TypeError: It is no pair of an id and a text.
            ValueError: As TypeError.
        """
        # A text of two letters could be unpacked too.
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
        """Take texts from the queue for one message; one that is too large for any message is answered here.

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
        """Settle a text.

        Raises:
            RunedError: It does not wait for an outcome.
        """
        entry = self._entries.pop(number, None)
        if entry is None:
            raise RunedError("the daemon answered a text that was not sent, or answered it twice")
        self._bytes -= entry.size
        self.ready.append((entry.key, outcome))

    def postpone(self, number: int) -> bool:
        """Leave a text unanswered whose error may pass, and tell whether it has another try."""
        entry = self._entries.get(number)
        if entry is not None:
            entry.tries += 1
        return entry is not None and entry.tries < MAX_ITEM_TRIES

    def requeue(self) -> None:
        """Queue all that is unanswered, for another connection."""
        self._queue.clear()
        self._queued_bytes = 0
        for number in self._entries:
            self._enqueue(number)

    def hand_over(self) -> list[tuple[K, Outcome]]:
        """Take what is ready."""
        ready, self.ready = self.ready, []
        return ready

    def _enqueue(self, number: int) -> None:
        self._queue.append(number)
        self._queued_bytes += self._entries[number].size


class Streaming(Generic[K]):
    """The flow of one stream.

    Args:
        flows: The flows of the client.
        job: Where its texts are put.
        options: How they are to be embedded.
        timeout: Seconds that may pass without an outcome while texts wait for one; None means no limit.
    """

    def __init__(self, flows: Flows, job: Job[K], options: Options, timeout: float | None) -> None:
        self._flows = flows
        self._job = job
        self._options = options
        self._deadline = Deadline(timeout, "no embedding of the stream came")
        self._tries = Tries(self._deadline, reconnect=True)
        self._space = answers.SpaceGuard()

    def run(self) -> StreamFlow[K]:
        """Give the steps."""
        job = self._job
        while job.unanswered or job.ready or not job.source_ended:
            if job.ready:
                yield from self._give()
            elif job.has_queued:
                try:
                    yield from self._converse()
                except RunedError as error:
                    # What was answered before it counts.
                    yield from self._give()
                    yield from self._overcome(error)
                job.requeue()
            else:
                yield Turn(None, None)
                self._deadline.restart()

    def _overcome(self, error: RunedError) -> Flow[None]:
        """Do what is to be done before another connection, or raise the error if that would be of no use."""
        if isinstance(error, BootstrappingError):
            yield from self._flows.wait_out_bootstrap(self._deadline)
        elif isinstance(error, PASSING):
            yield from self._flows.recover(error, self._tries)
        else:
            raise error

    def _converse(self) -> StreamFlow[K]:
        """Send and receive on one connection until it is over."""
        job = self._job
        options = EmbedStreamRequest()
        self._options.set_on(options)
        max_bytes = (yield from self._flows.limits(self._deadline)).max_request_bytes - options.ByteSize()
        connection: Connection = yield Connect(StreamExchange(METHOD), self._deadline.remaining())
        exchange = connection.exchange
        try:
            exchange.send(options.SerializeToString())
            while not exchange.ended:
                self._send(exchange, max_bytes)
                yield from self._give()
                if exchange.half_closed and not job.unanswered:
                    yield from self._part(connection)
                    return
                taken = job.taken
                data = yield Turn(connection, self._deadline.remaining() if job.unanswered else None)
                if job.taken != taken:
                    # The caller's iterator may have taken its time.
                    self._deadline.restart()
                if data is not None:
                    failure = self._receive(exchange, data)
                    yield from self._give()
                    if failure is not None:
                        raise failure
        finally:
            connection.close()
        if job.unanswered:
            raise ShuttingDownError("the daemon ended the stream before it had answered all texts")

    def _part(self, connection: Connection) -> StreamFlow[K]:
        """Let the daemon end a stream whose texts are all answered, so that it does not take it for one that was given up."""
        patience = Deadline(_GOODBYE)
        exchange = connection.exchange
        while not exchange.ended and exchange.failure is None and (left := patience.left()) is not None and left > 0:
            data = yield Turn(connection, left)
            if data is not None:
                exchange.receive(data)

    def _send(self, exchange: StreamExchange, max_bytes: int) -> None:
        """Hand over what the daemon has room for."""
        job = self._job
        if exchange.half_closed:
            return
        while job.has_queued and not (exchange.blocked or exchange.draining):
            message = job.next_message(max_bytes)
            if message.items:
                exchange.send(message.SerializeToString())
        if exchange.draining or (job.source_ended and not job.has_queued):
            exchange.end()

    def _receive(self, exchange: StreamExchange, data: bytes) -> RunedError | None:
        """Settle what the daemon has answered, and give the reason if the connection is of no more use."""
        failure: RunedError | None = None
        for message in exchange.receive(data):
            try:
                answer = EmbedStreamResponse.FromString(message)
                results = [(int(result.id), result.embedding) for result in answer.results]
            except (DecodeError, ValueError):
                raise not_of_runed() from None
            for number, item in results:
                outcome = answers.outcome(item, answer)
                if isinstance(outcome, (*PASSING, BootstrappingError)) and self._job.postpone(number):
                    outcome.retry_after = outcome.retry_after or _ITEM_PAUSE
                    failure = outcome
                    continue
                if isinstance(outcome, Embedding):
                    self._options.check_known(answer.fingerprint)
                    self._space.check(answer.fingerprint)
                self._job.answer(number, outcome)
                self._tries.reset()
        return exchange.failure or failure

    def _give(self) -> StreamFlow[K]:
        """Give the caller what is ready; the time that it takes over it does not count."""
        if results := self._job.hand_over():
            yield Give(results)
            self._deadline.restart()


def stream_flow(flows: Flows, options: Options, timeout: float | None) -> tuple[Job[Any], StreamFlow[Any]]:
    """Begin a stream.

    Args:
        flows: The flows of the client.
        options: How the texts are to be embedded.
        timeout: As for `Streaming`.

    Returns:
        Where to put the texts, and the steps.
    """
    job: Job[Any] = Job()
    return job, Streaming(flows, job, options, timeout).run()
