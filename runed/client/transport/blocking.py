"""The steps of flows over the daemon's UNIX socket, blocking: connections, their reuse, and time limits."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import Message

from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Ensure, Send, Sleep
from runed.client.target import Target
from runed.client.transport.slots import Slots
from runed.client.wire.unary import Answer, BrokenAnswerError, Exchange
from runed.errors import ClosedError, DaemonUnavailableError, DeadlineExceededError
from runed.lifecycle.listener import dial

CHUNK = 64 * 1024
"""Most bytes that are received at once."""

MAX_IDLE = 16
"""Most connections that are kept for later calls, so that a burst of threads or tasks does not hold many for ever."""

BLOCKED = (BlockingIOError, TimeoutError)
"""Errors of `dial` while the backlog of the daemon is full."""

DIAL_PAUSE = 0.02
"""Seconds between two tries to connect to a daemon with a full backlog."""

DIAL_PATIENCE = 60.0
"""Seconds during which a call without a time limit tries to connect to a daemon with a full backlog."""

BROKEN = (OSError, BrokenAnswerError)
"""Errors of a connection that ended before the answer."""


class Transport:
    """Blocking calls, from any number of threads. Each call in flight has its own connection.

    Args:
        target: The daemon to talk to.

    Attributes:
        path: The daemon's socket.
        streams: The connections of streams.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.path = target.socket
        self._idle: list[_Connection] = []
        self._pid = os.getpid()
        self._slots = Slots()
        self.streams = Slots()
        self._closed = False

    def perform(self, step: Send | Sleep | Ensure) -> Message | None:
        """Perform a step, and return its result."""
        match step:
            case Send():
                return step.decode(self._call(step.method, step.request.SerializeToString(), step.timeout))
            case Ensure():
                self._target.ensure(step.timeout)
            case Sleep():
                time.sleep(step.seconds)
        return None

    def close(self) -> None:
        """Close all idle connections. A connection in use is closed when its call ends."""
        self._closed = True
        self._discard_idle()

    def check_open(self) -> None:
        """Make sure that calls can be made.

        Raises:
            ClosedError: `close` was called.
        """
        if self._closed:
            raise closed()

    def _call(self, method: str, message: bytes, timeout: float | None) -> bytes:
        """Call a method.

        Args:
            method: Its name, as in "Embed".
            message: The encoded request.
            timeout: Seconds that the call may take; None means no limit.

        Returns:
            The encoded response.

        Raises:
            DaemonUnavailableError: Nobody listens, or the connection broke before the answer.
            DeadlineExceededError: The time was over first.
            RunedError: The daemon answered an error.
        """
        self.check_open()
        deadline = Deadline(timeout, "the daemon did not answer")
        try:
            give_back = self._slots.take(timeout)
        except TimeoutError:
            raise deadline.exceeded() from None
        try:
            return self._call_now(method, message, deadline)
        finally:
            give_back()

    def _call_now(self, method: str, message: bytes, deadline: Deadline) -> bytes:
        while connection := self._take_idle():
            with suppress(*BROKEN):
                return self._use(connection, method, message, deadline)
            # The daemon closes idle connections after a while, and all of them when it ends.
            self._discard_idle()
        try:
            return self._use(_Connection(self.path, deadline.remaining()), method, message, deadline)
        except BROKEN:
            raise broken(self.path) from None

    def _take_idle(self) -> _Connection | None:
        if self._pid != os.getpid():
            # After a fork, parent and child would read each other's answers. Closing the child's copy leaves the parent's open.
            self._pid = os.getpid()
            self._discard_idle()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _use(self, connection: _Connection, method: str, message: bytes, deadline: Deadline) -> bytes:
        try:
            answer = connection.call(method, message, deadline)
        except BaseException:
            # Also after Ctrl-C and the like: the rest of the answer must not become the answer to the next call.
            connection.close()
            raise
        if connection.exchange.can_go_on() and not self._closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer.message()

    def _discard_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


class _Connection:
    def __init__(self, path: Path, timeout: float | None) -> None:
        self._socket = open_socket(path, timeout)
        self.exchange = Exchange()

    def call(self, method: str, message: bytes, deadline: Deadline) -> Answer:
        try:
            self._socket.settimeout(remaining := deadline.remaining())
            # A daemon that refuses a large request answers before it has read it all.
            with suppress(BrokenPipeError):
                self._socket.sendall(self.exchange.request(method, message, remaining))
            while True:
                self._socket.settimeout(deadline.remaining())
                if answer := self.exchange.receive(self._socket.recv(CHUNK)):
                    return answer
        except TimeoutError:
            raise deadline.exceeded() from None

    def close(self) -> None:
        self._socket.close()


def open_socket(path: Path, timeout: float | None) -> socket.socket:
    """Connect to the daemon.

    Args:
        path: Its socket.
        timeout: Seconds that it may take; None means `DIAL_PATIENCE`.

    Raises:
        DaemonUnavailableError: Nobody listens.
        DeadlineExceededError: The daemon did not accept the connection in time.
    """
    end = time.monotonic() + (limit := DIAL_PATIENCE if timeout is None else timeout)
    while True:
        try:
            return dial(path, timeout=0)
        except BLOCKED:
            # A blocking connect would wait for ever for a frozen daemon, in spite of the socket's timeout.
            if time.monotonic() >= end:
                raise too_late(limit) from None
            time.sleep(DIAL_PAUSE)


def broken(path: Path) -> DaemonUnavailableError:
    """Return the error of a connection that ended before the answer."""
    return DaemonUnavailableError(f"the connection to {path} broke before the answer; the daemon ended or is overloaded")


def too_late(timeout: float | None) -> DeadlineExceededError:
    """Return the error of a call whose time was over before the answer."""
    return DeadlineExceededError(f"the daemon did not answer within {timeout} s")


def closed() -> ClosedError:
    """Return the error of a call after `close`."""
    return ClosedError("this client is closed; connect again")
