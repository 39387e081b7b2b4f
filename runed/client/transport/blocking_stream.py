"""Streams over the daemon's UNIX socket, from one thread, which waits for reading and writing at the same time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

from runed.client.calls.drive import drive
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Connect, Ensure, Outcome, Send, Sleep, StreamFlow, Turn, UploadFlow
from runed.client.transport.blocking import CHUNK, open_socket
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
    """

    def __init__(self, path: Path, exchange: E, timeout: float | None) -> None:
        self.exchange = exchange
        self._socket = open_socket(path, timeout)
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
    path: Path,
    perform: Callable[[Send | Sleep | Ensure], Any],
) -> Generator[tuple[K, Outcome], None, None]:
    """Drive the flow of a stream.

    Args:
        flow: The flow.
        pending: The texts that wait for their outcome.
        source: The caller's texts. An error of this iterator ends the stream and reaches the caller unchanged.
        path: The daemon's socket.
        perform: Performs the steps that streams share with other calls.

    Yields:
        The caller's ids of the texts with their outcomes.
    """

    def perform_step(step: object) -> object:
        if not isinstance(step, Turn):
            return _perform(step, path, perform)
        data = _turn(step, 0 if pending.has_room else step.timeout)
        if data is None:
            _feed(pending, source)
        return data

    with closing(flow):
        while results := drive(flow, perform_step):
            yield from results


def run_upload(flow: UploadFlow[T], path: Path, perform: Callable[[Send | Sleep | Ensure], Any]) -> T:
    """Drive the flow of a call that sends many messages and gets one.

    Args:
        flow: The flow.
        path: The daemon's socket.
        perform: Performs the steps that uploads share with other calls.

    Returns:
        The call's result.
    """

    def perform_step(step: object) -> object:
        return _turn(step, step.timeout) if isinstance(step, Turn) else _perform(step, path, perform)

    with closing(flow):  # tells the daemon, also after Ctrl-C
        return drive(flow, perform_step)


def _perform(step: Any, path: Path, perform: Callable[[Send | Sleep | Ensure], Any]) -> object:  # noqa: ANN401 # any step
    return BlockingStreamConnection(path, step.exchange, step.timeout) if isinstance(step, Connect) else perform(step)


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
