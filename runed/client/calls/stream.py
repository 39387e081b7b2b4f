"""The flow of a stream of embeddings.

The texts of the caller's iterator become numbered entries of `PendingTexts`. An entry lives until it is answered. After the end
of a connection, another connection sends the unanswered texts again, so that each text has exactly one outcome.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError
from runed_proto.runed.v1.runed_pb2 import EmbedStreamRequest, EmbedStreamResponse

from runed.client.calls import answers
from runed.client.calls.daemon_flows import PASSING, DaemonFlows, Tries
from runed.client.calls.patience import Deadline
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Connect, Flow, Give, StreamConnection, StreamFlow, Turn
from runed.client.options import Options
from runed.client.types import Embedding
from runed.client.wire.stream import StreamExchange, not_of_runed
from runed.errors import BootstrappingError, DeadlineExceededError, RunedError, ShuttingDownError

K = TypeVar("K")

METHOD = "EmbedStream"

_GOODBYE = 1.0
"""Seconds that the daemon may take to end a stream whose texts are all answered."""


class Streaming(Generic[K]):
    """The flow of one stream.

    Args:
        flows: The flows of the client.
        pending: The texts that wait for their outcome.
        options: The options of the embeddings.
        timeout: Seconds that may pass without an outcome while texts wait for one; None means no limit.
    """

    def __init__(self, flows: DaemonFlows, pending: PendingTexts[K], options: Options, timeout: float | None) -> None:
        self._flows = flows
        self._pending = pending
        self._options = options
        self._deadline = Deadline(timeout, "no embedding of the stream came")
        self._tries = Tries(self._deadline, reconnect=True)
        self._space = answers.SpaceGuard()

    def run(self) -> StreamFlow[K]:
        """Embed all texts. An error of the caller's iterator is raised unchanged."""
        pending = self._pending
        while pending.unanswered or pending.ready or not pending.source_ended:
            if pending.source_error is not None:
                raise pending.source_error
            if pending.ready:
                yield from self._give()
            elif pending.has_queued:
                try:
                    yield from self._converse()
                except RunedError as error:
                    # The answers before the failure count.
                    yield from self._give()
                    yield from self._overcome(error)
                pending.requeue()
            else:
                yield Turn(None, None)
                self._deadline.restart()
        return []

    def _overcome(self, error: RunedError) -> Flow[None]:
        """Prepare another connection, or raise the error if that would not help."""
        if isinstance(error, BootstrappingError):
            yield from self._flows.wait_out_bootstrap(self._deadline, self._options.model)
        elif isinstance(error, PASSING):
            yield from self._flows.recover(error, self._tries)
        elif isinstance(error, DeadlineExceededError):
            raise self._tries.patience.last_refusal or error
        else:
            raise error

    def _converse(self) -> StreamFlow[K]:
        """Send and receive on one connection until it is over."""
        pending = self._pending
        options = EmbedStreamRequest()
        self._options.set_on(options)
        max_bytes = (
            yield from self._flows.present_info(self._deadline, self._options.model)
        ).max_request_bytes - options.ByteSize()
        connection: StreamConnection = yield Connect(StreamExchange(METHOD), self._deadline.remaining())
        exchange = connection.exchange
        try:
            exchange.send(options.SerializeToString())
            while not exchange.ended:
                self._send(exchange, max_bytes)
                yield from self._give()
                if exchange.half_closed and not pending.unanswered:
                    yield from self._part(connection)
                    return []
                taken = pending.taken
                data = yield Turn(connection, self._deadline.remaining() if pending.unanswered else None)
                if pending.source_error is not None:
                    return []
                if pending.taken != taken:
                    # The caller's iterator may have taken a long time.
                    self._deadline.restart()
                if data is not None:
                    if (answer := self._receive(exchange, data)) is not None:
                        yield from self._flows.note_role(self._options, answer, self._deadline)
                    yield from self._give()
                    if exchange.failure is not None:
                        raise exchange.failure
        finally:
            connection.close()
        if pending.unanswered:
            raise ShuttingDownError("the daemon ended the stream before it had answered all texts; send the others again")
        return []

    def _part(self, connection: StreamConnection) -> StreamFlow[K]:
        """Let the daemon end a stream whose texts are all answered. Otherwise the daemon would count it as cancelled."""
        patience = Deadline(_GOODBYE)
        exchange = connection.exchange
        while not exchange.ended and exchange.failure is None and (left := patience.left()) is not None and left > 0:
            data = yield Turn(connection, left)
            if data is not None:
                exchange.receive(data)
        return []

    def _send(self, exchange: StreamExchange, max_bytes: int) -> None:
        """Send as many texts as the daemon has room for."""
        pending = self._pending
        if exchange.half_closed:
            return
        while pending.has_queued and not (exchange.blocked or exchange.draining):
            message = pending.next_message(max_bytes)
            if message.items:
                exchange.send(message.SerializeToString())
        if exchange.draining or (pending.source_ended and not pending.has_queued):
            exchange.end()

    def _receive(self, exchange: StreamExchange, data: bytes) -> EmbedStreamResponse | None:
        """Record the outcomes of answered texts. Return the last answer with a vector, if there is any."""
        last = None
        for message in exchange.receive(data):
            try:
                answer = EmbedStreamResponse.FromString(message)
                results = [(int(result.id), result.embedding) for result in answer.results]
            except (DecodeError, ValueError):
                raise not_of_runed() from None
            for number, item in results:
                outcome = answers.outcome(item, answer)
                if isinstance(outcome, Embedding):
                    self._options.check_known(answer)
                    self._space.check(answer.fingerprint)
                    last = answer
                self._pending.answer(number, outcome)
                self._tries.reset()
        return last

    def _give(self) -> StreamFlow[K]:
        """Hand ready outcomes to the caller. The time that the caller takes for them does not count."""
        if results := self._pending.hand_over():
            yield Give(results)
            self._deadline.restart()
        return []


def stream_flow(flows: DaemonFlows, options: Options, timeout: float | None) -> tuple[PendingTexts[Any], StreamFlow[Any]]:
    """Begin a stream.

    Args:
        flows: The flows of the client.
        options: The options of the embeddings.
        timeout: As for `Streaming`.

    Returns:
        The object that takes the texts, and the flow.
    """
    pending: PendingTexts[Any] = PendingTexts()
    return pending, Streaming(flows, pending, options, timeout).run()
