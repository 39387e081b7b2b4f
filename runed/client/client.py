"""The blocking client: the daemon's methods as Python methods."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message

from runed.client.flow import Deadline, Ensure, Flow, Flows, Send, Sleep, Vectors
from runed.client.target import Target
from runed.client.transport import Transport
from runed.client.types import Health, Info
from runed.errors import RunedError

T = TypeVar("T")


def connect(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
    timeout: float | None = None,
    on_progress: Callable[[Health], None] | None = None,
) -> Client:
    """Connect to the daemon, which is started if none runs.

    Returns as soon as the daemon listens; embeddings then wait while it fetches its engine and model. A running daemon that is
    older than this package is replaced by one of this version, after it has finished what is in flight.

    Args:
        home: The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`.
        socket_path: The socket of a daemon that is looked after by others; it is never started or replaced.
        spawn: Whether to start a daemon if none runs, now and when it went away later.
        timeout: Seconds that the connect, and each call, may take in all, waiting included. None: as long as it takes for a
            call, and 60 for the connect.
        on_progress: Called with each change of Health while a call waits for engine and model, in the thread of that call.

    Returns:
        The client, to be closed, or used as a context manager.

    Raises:
        DaemonUnavailableError: No daemon runs, and none was to be started.
        DaemonStartError: The daemon could not be started; the message ends with the tail of its log.
        SettingsError: A setting cannot be used.
    """
    target = Target.resolve(home=home, socket_path=socket_path, spawn=spawn)
    target.ensure(timeout)
    return Client(target, timeout=timeout, on_progress=on_progress)


class Client:
    """A connection to the daemon, for any number of threads; `runed.connect` makes it.

    Every method raises a subclass of `runed.errors.RunedError`, whose message says what to do. If the daemon went away since
    the last call, it is started again, unless the client was told not to, and the call is repeated once.

    Args:
        target: The daemon to talk to.
        timeout: As for `connect`.
        on_progress: As for `connect`.
    """

    def __init__(self, target: Target, *, timeout: float | None, on_progress: Callable[[Health], None] | None) -> None:
        self._target = target
        self._timeout = timeout
        self._flows = Flows(spawn=target.settings is not None, on_progress=on_progress)
        self._transport = Transport(target.socket)

    def embed(self, text: str, *, timeout: float | None = None) -> Vectors:
        """Embed one text.

        Waits while the daemon fetches its engine and model, which takes minutes the first time.

        Args:
            text: The text; not empty, and at most `Info.max_text_length` tokens long.
            timeout: Seconds that the call may take, waiting included; None means the client's own limit.

        Returns:
            A vector of L2 norm 1, float32, shape (dim,).

        Raises:
            InvalidRequestError: The text is empty, too long or not valid Unicode; the subclass says which.
            BackendError: The engine cannot be installed or started, or failed.
            DeadlineExceededError: The time was over first.
        """
        return self._run(self._flows.embed(text, self._deadline(timeout)))

    def embed_batch(self, texts: Iterable[str], *, timeout: float | None = None) -> Vectors:
        """Embed many texts, by as many requests as the daemon's limits demand.

        Args:
            texts: The texts, each as for `embed`; none at all give shape (0, dim).
            timeout: As for `embed`, for all of them together.

        Returns:
            Vectors of L2 norm 1 in the order of the texts, float32, shape (n, dim).

        Raises:
            InvalidRequestError: As for `embed`; `metadata["index"]` tells the first text at fault.
            BackendError: As for `embed`.
            DeadlineExceededError: As for `embed`.
        """
        return self._run(self._flows.embed_batch(texts, self._deadline(timeout)))

    def wait_until_ready(self, *, timeout: float | None = None) -> Info:
        """Wait while the daemon fetches its engine and model.

        Args:
            timeout: As for `embed`.

        Returns:
            What the daemon and its model are, complete.

        Raises:
            BackendError: The engine cannot be installed or started.
            DeadlineExceededError: The time was over first.
        """
        return self._run(self._flows.wait_until_ready(self._deadline(timeout)))

    def info(self, *, timeout: float | None = None) -> Info:
        """Ask what the daemon and its model are, at any stage; `timeout` as for `embed`."""
        return self._run(self._flows.info(self._deadline(timeout)))

    def health(self, *, timeout: float | None = None) -> Health:
        """Ask what the daemon is doing right now; `timeout` as for `embed`."""
        return self._run(self._flows.health(self._deadline(timeout)))

    def shutdown(self, grace_seconds: int = 0, *, timeout: float | None = None) -> None:
        """Ask the daemon to finish what is in flight and to exit; returns before it has.

        Args:
            grace_seconds: How long what is in flight may take; 0 means the daemon's own 10 seconds, 300 is the most.
            timeout: As for `embed`.

        Raises:
            DaemonUnavailableError: There is no daemon.
        """
        self._run(self._flows.shutdown(grace_seconds, self._deadline(timeout)))

    def close(self) -> None:
        """Close the connections; the daemon goes on for others."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    def _run(self, flow: Flow[T]) -> T:
        result: Message | bool | None = None
        error: RunedError | None = None
        while True:
            try:
                step = flow.throw(error) if error else flow.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = error = None
            try:
                match step:
                    case Send():
                        data = self._transport.call(step.method, step.request.SerializeToString(), step.timeout)
                        result = step.decode(data)
                    case Sleep():
                        time.sleep(step.seconds)
                    case Ensure():
                        result = self._target.ensure(step.timeout)
            except RunedError as raised:
                error = raised
