"""What a call to the daemon takes, step by step and without doing it: shared by `Client` and `AsyncClient`.

A flow is a generator. It yields steps, is sent their results or thrown their errors, and returns the call's result; who runs it
decides whether a step blocks a thread or suspends a task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    ShutdownRequest,
    ShutdownResponse,
)

from runed.client.types import Health, Info, Phase, Status
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    BootstrappingError,
    DaemonUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidTextError,
    RequestTooLargeError,
    RunedError,
    ShuttingDownError,
)

Vectors: TypeAlias = NDArray[np.float32]
T = TypeVar("T")

_POLL_FIRST = 0.1
_POLL_MOST = 0.25
"""Seconds between two looks at Health during a bootstrap, at first and later."""

_MAX_RETRIES = 3
_RETRY_PAUSE = 0.05
"""Seconds from a broken connection to the next try. A dying daemon closes its connections a moment before its listening socket,
so that it may seem to live on; this is why there are more tries than one."""

_DRAIN_POLL = 0.2
_MAX_DRAIN = 30.0
"""Seconds to wait for a draining daemon to make room for its successor."""

_LARGE_TEXT = 1024 * 1024
"""UTF-8 bytes from which on a single text is compared with the daemon's limit before it is sent."""

_TEXT_OVERHEAD = 6
"""Bytes at most beside the text itself for each text of an encoded batch: the tag and the length."""

_FALLBACK_BATCH_SIZE = 32
_FALLBACK_REQUEST_BYTES = 4 * 1024 * 1024
"""For a daemon that tells no limits of its own."""


class Deadline:
    """The end of the time that a call may take, waiting included.

    Args:
        timeout: Seconds from now on; None means no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Give the seconds that remain; None means no limit.

        Raises:
            DeadlineExceededError: There are none.
        """
        if self._end is None:
            return None
        if (seconds := self._end - time.monotonic()) <= 0:
            raise self.exceeded()
        return seconds

    def exceeded(self) -> DeadlineExceededError:
        """Describe the call whose time is over."""
        return DeadlineExceededError(
            f"the call did not succeed within {self.timeout:g} s; give it more time, or send less at once"
        )


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the result is the response.

    Attributes:
        method: The method's name, as in "Embed".
        request: The request.
        response_type: The class of the response.
        timeout: Seconds that it may take; None means no limit.
    """

    method: str
    request: Message
    response_type: type[Message]
    timeout: float | None

    def decode(self, data: bytes) -> Message:
        """Decode the response.

        Raises:
            RunedError: It is none.
        """
        try:
            return self.response_type.FromString(data)
        except DecodeError:
            raise RunedError(f"the answer to {self.method} is no message of runed; is it another program's socket?") from None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let time pass; there is no result.

    Attributes:
        seconds: How much.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Ensure:
    """See to it that a daemon listens; the result is whether one was started for that.

    Attributes:
        timeout: Seconds that it may take; None means the default of `ensure_daemon`.
    """

    timeout: float | None


Flow: TypeAlias = Generator[Send | Sleep | Ensure, Any, T]


class Flows:
    """The flows of one client.

    Args:
        spawn: Whether a daemon that went away may be started again.
        on_progress: Called with each change of Health while an embedding waits for engine and model.
    """

    def __init__(self, *, spawn: bool, on_progress: Callable[[Health], None] | None) -> None:
        self._spawn = spawn
        self._on_progress = on_progress
        self._limits: Info | None = None

    def embed(self, text: str, deadline: Deadline) -> Flow[Vectors]:
        """Embed one text; gives shape (dim,)."""
        if _encoded_length(text) > _LARGE_TEXT:
            _check_length(text, (yield from self._cached_limits(deadline)).max_request_bytes)
        response = yield from self._send_when_ready("Embed", EmbedRequest(text=text), EmbedResponse, deadline)
        return np.array(response.vector, dtype=np.float32)

    def embed_batch(self, texts: Iterable[str], deadline: Deadline) -> Flow[Vectors]:
        """Embed many texts by as many requests as the daemon's limits demand; gives shape (n, dim)."""
        texts = _checked_texts(texts)
        if not texts:
            return np.empty((0, (yield from self.wait_until_ready(deadline)).vector_dim), dtype=np.float32)
        vectors: Vectors | None = None
        for start, chunk in _chunks(texts, (yield from self._cached_limits(deadline))):
            request = EmbedBatchRequest(texts=chunk)
            try:
                response = yield from self._send_when_ready("EmbedBatch", request, EmbedBatchResponse, deadline)
            except InvalidRequestError as error:
                raise _relocated(error, start, len(chunk)) from None
            if vectors is None:
                vectors = np.empty((len(texts), len(response.embeddings[0].vector)), dtype=np.float32)
            if len(response.embeddings) != len(chunk) or any(len(e.vector) != vectors.shape[1] for e in response.embeddings):
                raise BackendFaultError("the daemon answered other vectors than were asked for; send the batch again")
            for row, embedding in enumerate(response.embeddings, start):
                vectors[row] = embedding.vector
        assert vectors is not None
        return vectors

    def wait_until_ready(self, deadline: Deadline) -> Flow[Info]:
        """Wait until engine and model are there; gives the complete Info."""
        while not (info := (yield from self.info(deadline))).vector_dim:
            yield from self._wait_out_bootstrap(deadline)
        return info

    def info(self, deadline: Deadline) -> Flow[Info]:
        """Ask what the daemon and its model are."""
        response = yield from self._send("Info", InfoRequest(), InfoResponse, deadline)
        return Info(
            daemon_version=response.daemon_version,
            socket_path=response.socket_path,
            max_batch_size=response.max_batch_size or _FALLBACK_BATCH_SIZE,
            max_request_bytes=response.max_request_bytes or _FALLBACK_REQUEST_BYTES,
            model_identity=response.model_identity,
            model_name=response.model_name,
            model_variant=response.model_variant,
            vector_dim=response.vector_dim,
            max_text_length=response.max_text_length,
            pooling=response.pooling,
            engine_version=response.engine_version,
            centroid_set_version=response.centroid_set_version,
        )

    def health(self, deadline: Deadline) -> Flow[Health]:
        """Ask what the daemon is doing right now."""
        response = yield from self._send("Health", HealthRequest(), HealthResponse, deadline)
        status = Status(response.status)
        return Health(
            status=status,
            phase=Phase(response.phase) if status is Status.LOADING else None,
            bytes_done=response.bytes_done,
            bytes_total=response.bytes_total,
            message=response.message,
            uptime_seconds=response.uptime_seconds,
            total_requests=response.total_requests,
            in_flight_requests=response.in_flight_requests,
            pid=response.pid,
            engine_pid=response.engine_pid,
            engine_restarts=response.engine_restarts,
        )

    def shutdown(self, grace_seconds: int, deadline: Deadline) -> Flow[None]:
        """Ask the daemon to drain and exit; one that is gone already is not started for that."""
        yield Send("Shutdown", ShutdownRequest(grace_seconds=grace_seconds), ShutdownResponse, deadline.remaining())

    def _cached_limits(self, deadline: Deadline) -> Flow[Info]:
        if self._limits is None:
            self._limits = yield from self.info(deadline)
        return self._limits

    def _send_when_ready(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request, and wait out a bootstrap that is in its way."""
        while True:
            try:
                return (yield from self._send(method, request, response_type, deadline))
            except BootstrappingError:
                yield from self._wait_out_bootstrap(deadline)

    def _wait_out_bootstrap(self, deadline: Deadline) -> Flow[None]:
        """Watch Health until the daemon no longer loads, and report what changes."""
        pause = _POLL_FIRST
        told: object = None
        message = ""
        try:
            while True:
                health = yield from self.health(deadline)
                message = health.message
                news = (health.status, health.phase, health.bytes_done, health.bytes_total, message)
                if self._on_progress and news != told:
                    self._on_progress(health)
                told = news
                if health.status is Status.DEGRADED:
                    raise BackendUnavailableError(message or "the daemon could not install or start its engine; see its log")
                yield from self._pause(pause, deadline)
                if health.status is not Status.LOADING:
                    return
                pause = min(pause * 1.25, _POLL_MOST)
        except DeadlineExceededError as error:
            raise DeadlineExceededError(f"{error.message}: engine and model are not ready yet: {message}") from None

    def _send(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request, once more if the daemon went away and may be started again.

        All requests that come here may be repeated: an embedding that is computed twice is the same embedding.
        """
        restarted = False
        retries = 0
        drained = 0.0
        while True:
            try:
                response: T = yield Send(method, request, response_type, deadline.remaining())  # type: ignore[arg-type] # T is one
                return response  # noqa: TRY300 # `else` would only be further away
            except DeadlineExceededError:
                if deadline.timeout is None:
                    raise
                # Only the deadline knows the time of the whole call; whoever noticed its end knows what was left of it.
                raise deadline.exceeded() from None
            except ShuttingDownError:
                if not self._spawn or drained >= _MAX_DRAIN:
                    raise
                yield from self._pause(_DRAIN_POLL, deadline)
                drained += _DRAIN_POLL
            except DaemonUnavailableError:
                if not self._spawn or restarted or retries == _MAX_RETRIES:
                    raise
                yield from self._pause(_RETRY_PAUSE, deadline)
                retries += 1
            self._limits = None
            restarted = yield Ensure(deadline.remaining())

    def _pause(self, seconds: float, deadline: Deadline) -> Flow[None]:
        remaining = deadline.remaining()
        yield Sleep(seconds if remaining is None else min(seconds, remaining))


def _checked_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"embed_batch takes a list of str, not one {type(texts).__name__}; use embed for one text")
    return list(texts)


def _encoded_length(text: str, index: int | None = None) -> int:
    """Give the length of a text in UTF-8, and refuse what is not one."""
    where = {} if index is None else {"index": str(index)}
    name = "the text" if index is None else f"text {index} of the batch"
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__}, but must be a str")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"{name} is not valid Unicode: it has half of a surrogate pair at position {error.start}; "
            "it was most likely decoded by the wrong codec, or cut in the middle of a character",
            metadata=where,
        ) from None


def _check_length(text: str, limit: int, index: int | None = None) -> int:
    length = _encoded_length(text, index) + _TEXT_OVERHEAD
    if length > limit:
        name = "the text" if index is None else f"text {index} of the batch"
        raise RequestTooLargeError(
            f"{name} has {length} bytes, but one request may have {limit}; no model reads as much, so cut it into passages",
            metadata={"limit": str(limit)} | ({} if index is None else {"index": str(index)}),
        )
    return length


def _chunks(texts: list[str], limits: Info) -> Iterator[tuple[int, list[str]]]:
    """Cut a batch into requests that keep to the daemon's limits; gives each with the index of its first text."""
    lengths = [_check_length(text, limits.max_request_bytes, index) for index, text in enumerate(texts)]
    start = size = 0
    for index, length in enumerate(lengths):
        if index - start == limits.max_batch_size or size + length > limits.max_request_bytes:
            yield start, texts[start:index]
            start, size = index, 0
        size += length
    yield start, texts[start:]


def _relocated(error: InvalidRequestError, start: int, count: int) -> InvalidRequestError:
    """Say where in the caller's batch a text stands that the daemon refused as part of one request."""
    if not start or "index" not in error.metadata:
        return error
    return type(error)(
        f"in the request that starts with text {start} of the batch, {count} texts long: {error.message}",
        metadata=error.metadata | {"index": str(start + int(error.metadata["index"]))},
        retry_after=error.retry_after,
    )
