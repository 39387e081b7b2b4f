"""Streams over the daemon's UNIX socket, from one thread and without blocking in more than one place at a time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from runed.client.calls.flows import Ensure, Send, Sleep
from runed.client.calls.stream import Connect, Give, Job, Outcome, StreamFlow, Turn, UploadFlow
from runed.client.transport.blocking import CHUNK, open_socket
from runed.client.wire.stream import StreamExchange
from runed.errors import RunedError

K = TypeVar("K")
T = TypeVar("T")

_GATHER = 0.02
"""Seconds for which texts are gathered for one message while more come at once."""


class StreamConnection:
    """A connection that carries one stream.

    Args:
        path: The daemon's socket.
        step: The step that asks for it.
    """

    def __init__(self, path: Path, step: Connect) -> None:
        self.exchange: StreamExchange = step.exchange
        self._socket = open_socket(path, step.timeout)
        self._socket.setblocking(False)
        self._unwritten = memoryview(b"")

    def transfer(self, timeout: float | None) -> bytes | None:
        """Write what the exchange gives, as far as the daemon takes it, and wait for bytes of it.

        Args:
            timeout: Seconds to wait at most; None means no limit.

        Returns:
            The bytes, b"" at the end of the connection, or None if there were none in time.
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
        """Give up what is still open of the stream, and close; closing twice does nothing."""
        if self._socket.fileno() < 0:
            return
        self.exchange.reset()
        # A daemon that does not read finds out by the end of the connection.
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
                # What the daemon said before it closed can still be read.
                self._unwritten = memoryview(b"")
                return

    def _poll(self, seconds: float | None) -> int:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unwritten else 0))
        events = poll.poll(None if seconds is None else seconds * 1000)
        return events[0][1] if events else 0


def run_stream(
    flow: StreamFlow[K],
    job: Job[K],
    source: Iterator[tuple[K, str]],
    path: Path,
    perform: Callable[[Send | Sleep | Ensure], Any],
) -> Generator[tuple[K, Outcome], None, None]:
    """Do the steps of a stream.

    Args:
        flow: The steps.
        job: Where the texts are put.
        source: The caller's texts; what it raises ends the stream and reaches the caller as it is.
        path: The daemon's socket.
        perform: Does the steps that streams share with other calls.

    Yields:
        The caller's names of the texts with their outcomes.
    """
    result: Any = None
    error: RunedError | None = None
    try:
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration:
                return
            result = error = None
            if isinstance(step, Give):
                yield from step.results
                continue
            try:
                match step:
                    case Connect():
                        result = StreamConnection(path, step)
                    case Turn(connection=StreamConnection() as connection):
                        result = connection.transfer(0 if job.has_room else step.timeout)
                    case Turn():
                        pass
                    case _:
                        result = perform(step)
            except RunedError as raised:
                error = raised
            if isinstance(step, Turn) and result is None and error is None:
                # Outside of the `try`: an error of the caller's iterator is none of the daemon's.
                _feed(job, source)
    finally:
        flow.close()


def run_upload(flow: UploadFlow[T], path: Path, perform: Callable[[Send | Sleep | Ensure], Any]) -> T:
    """Do the steps of a call that sends many messages and gets one.

    Args:
        flow: The steps.
        path: The daemon's socket.
        perform: Does the steps that uploads share with other calls.

    Returns:
        The call's result.
    """
    result: Any = None
    error: RunedError | None = None
    try:
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = error = None
            try:
                match step:
                    case Connect():
                        result = StreamConnection(path, step)
                    case Turn(connection=StreamConnection() as connection):
                        result = connection.transfer(step.timeout)
                    case Turn():
                        pass
                    case _:
                        result = perform(step)
            except RunedError as raised:
                error = raised
    finally:
        flow.close()  # whatever broke it off, such as Ctrl-C, the daemon is told


def _feed(job: Job[K], source: Iterator[tuple[K, str]]) -> None:
    """Take texts that the job has room for; waits for the first one only."""
    began = time.monotonic()
    while job.has_room:
        try:
            item = next(source)
        except StopIteration:
            job.source_ended = True
            return
        job.add(item)
        if time.monotonic() - began > _GATHER:
            return
