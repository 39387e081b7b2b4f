"""Streams over the daemon's UNIX socket, from one thread, which waits for reading and writing at the same time."""

from __future__ import annotations

import select
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

from runed.client.calls.drive import drive
from runed.client.calls.patience import Deadline
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Connect, Outcome, StreamFlow, Turn, UploadFlow
from runed.client.transport.blocking import CHUNK, DIAL_PATIENCE, Transport, open_socket
from runed.client.transport.slots import Slots
from runed.client.wire.http2 import Http2Request
from runed.client.wire.stream import StreamExchange

E = TypeVar("E", bound=StreamExchange | Http2Request)
K = TypeVar("K")
T = TypeVar("T")

_GATHER = 0.02
"""Seconds during which texts are gathered for one message, while more come at once."""


class BlockingStreamConnection(Generic[E]):
    """A connection that carries one stream.

    Args:
        path: The daemon's socket.
        exchange: The initial state of the stream.
        timeout: Seconds that the connect may take; None means `DIAL_PATIENCE`.
        slots: The connections that it is one of.
    """

    def __init__(self, path: Path, exchange: E, timeout: float | None, slots: Slots) -> None:
        self.exchange = exchange
        deadline = Deadline(DIAL_PATIENCE if timeout is None else timeout, "no connection for the stream was free")
        try:
            give_back = slots.take(deadline.timeout)
        except TimeoutError:
            raise deadline.exceeded() from None
        # Also for a stream that its caller drops without closing it.
        self._give_back = weakref.finalize(self, give_back)
        try:
            self._socket = open_socket(path, deadline.remaining())
        except BaseException:
            self._give_back()
            raise
        self._socket.setblocking(False)
        self._unwritten = memoryview(b"")

    def transfer(self, timeout: float | None) -> bytes | None:
        """Write the output of the exchange, as far as the daemon accepts it, and wait for bytes of the daemon.

        Args:
            timeout: Most seconds to wait; None means no limit.

        Returns:
            The bytes, b"" at the end of the connection, or None if none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._write()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = self._poll(left)
            if ready & ~select.POLLOUT:
                try:
                    return self._socket.recv(CHUNK)
                except ConnectionError:
                    return b""
            if not ready:
                return None

    def close(self) -> None:
        """Reset the stream if it is not complete, and close the connection. A second close does nothing."""
        if self._socket.fileno() < 0:
            return
        self.exchange.reset()
        # A daemon that does not read will notice the end of the connection.
        self._write()
        self._socket.close()
        self._give_back()

    def _write(self) -> None:
        while data := self._unwritten or memoryview(self.exchange.output()):
            self._unwritten = data
            try:
                self._unwritten = data[self._socket.send(data) :]
            except BlockingIOError:
                return
            except ConnectionError:
                # The last bytes of the daemon can still be read.
                self._unwritten = memoryview(b"")
                return

    def _poll(self, seconds: float | None) -> int:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unwritten else 0))
        events = poll.poll(None if seconds is None else seconds * 1000)
        return events[0][1] if events else 0


def run_stream(
    flow: StreamFlow[K],
    pending: PendingTexts[K],
    source: Iterator[tuple[K, str]],
    transport: Transport,
) -> Generator[tuple[K, Outcome], None, None]:
    """Drive the flow of a stream.

    Args:
        flow: The flow.
        pending: The texts that wait for their outcome.
        source: The caller's texts. An error of this iterator ends the stream and reaches the caller unchanged.
        transport: Performs the steps that streams share with other calls.

    Yields:
        The caller's ids of the texts with their outcomes.
    """

    def perform_step(step: object) -> object:
        if not isinstance(step, Turn):
            return _perform(step, transport)
        data = _turn(step, 0 if pending.has_room else step.timeout)
        if data is None:
            _feed(pending, source)
        return data

    with closing(flow):
        while results := drive(flow, perform_step):
            yield from results


def run_upload(flow: UploadFlow[T], transport: Transport) -> T:
    """Drive the flow of a call that sends many messages and gets one.

    Args:
        flow: The flow.
        transport: Performs the steps that uploads share with other calls.

    Returns:
        The call's result.
    """

    def perform_step(step: object) -> object:
        return _turn(step, step.timeout) if isinstance(step, Turn) else _perform(step, transport)

    with closing(flow):  # tells the daemon, also after Ctrl-C
        return drive(flow, perform_step)


def _perform(step: Any, transport: Transport) -> object:  # noqa: ANN401 # any step
    if isinstance(step, Connect):
        return BlockingStreamConnection(transport.path, step.exchange, step.timeout, transport.streams)
    return transport.perform(step)


def _turn(step: Turn, timeout: float | None) -> bytes | None:
    return step.connection.transfer(timeout) if isinstance(step.connection, BlockingStreamConnection) else None


def _feed(pending: PendingTexts[K], source: Iterator[tuple[K, str]]) -> None:
    """Take texts while there is room for them. Wait only for the first one."""
    began = time.monotonic()
    try:
        while pending.has_room:
            pending.add(next(source))
            if time.monotonic() - began > _GATHER:
                return
    except StopIteration:
        pending.source_ended = True
    except Exception as error:  # noqa: BLE001 # the flow raises it, so that it is not taken for one of the daemon
        pending.source_error = error
