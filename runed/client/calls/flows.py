"""What a call to the daemon takes, step by step and without doing it: shared by `Client` and `AsyncClient`.

A flow is a generator. It yields steps, is sent their results or thrown their errors, and returns the call's result; who runs it
decides whether a step blocks a thread or suspends a task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from runed_proto.runed.v1.runed_pb2 import (
    CountTokensRequest,
    CountTokensResponse,
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

from runed.client.calls import answers
from runed.client.calls.patience import Deadline, Patience
from runed.client.calls.texts import LARGE_TEXT, TEXT_OVERHEAD, check_length, encoded_length, listed, measure, relocated, split
from runed.client.options import Options, too_old
from runed.client.types import Embedding, Health, Info, Status, Vectors
from runed.errors import (
    BackendUnavailableError,
    BootstrappingError,
    DaemonUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidTextError,
    QueueFullError,
    RequestTooLargeError,
    RunedError,
    ShuttingDownError,
)

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

PASSING = (QueueFullError, BackendUnavailableError, ShuttingDownError, DaemonUnavailableError)
"""What another try may help against."""


class Tries:
    """What a call has tried so far.

    Args:
        deadline: The end of the call.
        reconnect: Whether to look for a daemon that broke a connection even if none may be started.
    """

    def __init__(self, deadline: Deadline, *, reconnect: bool = False) -> None:
        self.deadline = deadline
        self.reconnect = reconnect
        self.patience = Patience(deadline)
        self.reset()

    def reset(self) -> None:
        """Begin again, after a try that brought the work forward."""
        self.patience.reset()
        self.restarted = False
        self.retries = 0
        self.drained = 0.0


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

    def embed(self, text: str, options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed one text; gives shape (dim,)."""
        request = EmbedRequest(text=text if (length := encoded_length(text)) <= LARGE_TEXT else "")
        options.set_on(request)
        if length > LARGE_TEXT:
            check_length(length + TEXT_OVERHEAD, (yield from self.limits(deadline)).max_request_bytes - request.ByteSize())
            request.text = text
        response = yield from self._send_when_ready("Embed", request, EmbedResponse, deadline)
        options.check_known(response.fingerprint)
        return np.array(response.vector, dtype=np.float32)

    def embed_batch(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed many texts by as many requests as the daemon's limits demand; gives shape (n, dim)."""
        texts = listed(texts)
        if not texts:
            dim = options.dimensions or (yield from self.wait_until_ready(deadline)).vector_dim
            return np.empty((0, dim), dtype=np.float32)
        common = EmbedBatchRequest()
        options.set_on(common)
        max_texts, max_bytes = yield from self._room_beside(common, deadline)
        lengths = [measure(text, index, max_bytes) for index, text in enumerate(texts)]
        vectors: Vectors | None = None
        space = answers.SpaceGuard()
        for start, end in split(lengths, max_texts, max_bytes):
            try:
                response = yield from self._embed_batch(texts[start:end], common, deadline)
            except InvalidRequestError as error:
                raise relocated(error, start, end - start) from None
            options.check_known(response.fingerprint)
            space.check(response.fingerprint)
            if vectors is None:
                vectors = np.empty((len(texts), len(response.embeddings[0].vector)), dtype=np.float32)
            if any(len(embedding.vector) != vectors.shape[1] for embedding in response.embeddings):
                raise answers.no_vector()
            for row, embedding in enumerate(response.embeddings, start):
                vectors[row] = embedding.vector
        assert vectors is not None
        return vectors

    def embed_items(
        self, texts: Iterable[str], options: Options, deadline: Deadline, *, with_route: bool
    ) -> Flow[list[Embedding | RunedError]]:
        """Embed many texts, and leave the others alone where one cannot be embedded; gives one outcome a text."""
        texts = listed(texts)
        if not texts:
            return []
        common = EmbedBatchRequest(per_item_errors=True, with_route=with_route)
        options.set_on(common)
        max_texts, max_bytes = yield from self._room_beside(common, deadline)
        outcomes: dict[int, Embedding | RunedError] = {}
        lengths: dict[int, int] = {}
        for index, text in enumerate(texts):
            try:
                lengths[index] = measure(text, index, max_bytes)
            except (InvalidTextError, RequestTooLargeError) as error:
                outcomes[index] = error
        sendable = list(lengths)
        space = answers.SpaceGuard()
        for start, end in split(list(lengths.values()), max_texts, max_bytes):
            part = sendable[start:end]
            response = yield from self._embed_batch([texts[index] for index in part], common, deadline)
            if not response.fingerprint:
                raise too_old("gives no details of an embedding")
            space.check(response.fingerprint)
            for index, item in zip(part, response.embeddings, strict=True):
                outcomes[index] = answers.outcome(item, response, index)
        return [outcomes[index] for index in range(len(texts))]

    def count_tokens(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[list[int]]:
        """Count the tokens of texts by as many requests as the daemon's limits demand; gives one number a text."""
        texts = listed(texts)
        if not texts:
            return []
        common = CountTokensRequest()
        options.set_prompt_on(common)
        max_texts, max_bytes = yield from self._room_beside(common, deadline)
        lengths = [measure(text, index, max_bytes) for index, text in enumerate(texts)]
        counts: list[int] = []
        for start, end in split(lengths, max_texts, max_bytes):
            request = CountTokensRequest(texts=texts[start:end])
            request.MergeFrom(common)
            try:
                response = yield from self._send_when_ready("CountTokens", request, CountTokensResponse, deadline)
            except InvalidRequestError as error:
                raise relocated(error, start, end - start) from None
            if len(response.token_counts) != end - start:
                raise RunedError("the daemon counted the tokens of other texts than were asked for; send them again")
            counts += response.token_counts
        return counts

    def wait_until_ready(self, deadline: Deadline) -> Flow[Info]:
        """Wait until engine and model are there; gives the complete Info."""
        while not (info := (yield from self.info(deadline))).vector_dim:
            yield from self.wait_out_bootstrap(deadline)
        return info

    def info(self, deadline: Deadline) -> Flow[Info]:
        """Ask what the daemon and its model are."""
        return answers.info((yield from self._send("Info", InfoRequest(), InfoResponse, deadline)))

    def health(self, deadline: Deadline) -> Flow[Health]:
        """Ask what the daemon is doing right now."""
        return answers.health((yield from self._send("Health", HealthRequest(), HealthResponse, deadline)))

    def shutdown(self, grace_seconds: int, deadline: Deadline) -> Flow[None]:
        """Ask the daemon to drain and exit; one that is gone already is not started for that."""
        yield Send("Shutdown", ShutdownRequest(grace_seconds=grace_seconds), ShutdownResponse, deadline.remaining())

    def limits(self, deadline: Deadline) -> Flow[Info]:
        """Ask for the limits of a request, once for each daemon; the rest of this Info may be out of date."""
        if self._limits is None:
            self._limits = yield from self.info(deadline)
        return self._limits

    def _room_beside(self, common: Message, deadline: Deadline) -> Flow[tuple[int, int]]:
        """Give how many texts, and bytes of texts, one request may have beside the fields that all requests of a call share."""
        limits = yield from self.limits(deadline)
        return limits.max_batch_size, limits.max_request_bytes - common.ByteSize()

    def _embed_batch(self, texts: list[str], common: EmbedBatchRequest, deadline: Deadline) -> Flow[EmbedBatchResponse]:
        request = EmbedBatchRequest(texts=texts)
        request.MergeFrom(common)
        response = yield from self._send_when_ready("EmbedBatch", request, EmbedBatchResponse, deadline)
        if len(response.embeddings) != len(texts):
            raise answers.no_vector()
        return response

    def _send_when_ready(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request, and wait out a bootstrap that is in its way."""
        while True:
            try:
                return (yield from self._send(method, request, response_type, deadline))
            except BootstrappingError:
                yield from self.wait_out_bootstrap(deadline)

    def wait_out_bootstrap(self, deadline: Deadline) -> Flow[None]:
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
        """Send a request, again if the daemon is too busy for the moment, once more if it went away and may be started again.

        All requests that come here may be repeated: an embedding that is computed twice is the same embedding.
        """
        tries = Tries(deadline)
        while True:
            try:
                response: T = yield Send(method, request, response_type, deadline.remaining())  # type: ignore[arg-type] # T is one
                return response  # noqa: TRY300 # `else` would only be further away
            except DeadlineExceededError:
                if deadline.timeout is None:
                    raise
                # Only the deadline knows the time of the whole call; whoever noticed its end knows what was left of it.
                raise deadline.exceeded() from None
            except PASSING as error:
                yield from self.recover(error, tries)

    def recover(self, error: RunedError, tries: Tries) -> Flow[None]:
        """Do what is to be done before another try.

        Args:
            error: Why the last try failed, one of `PASSING`.
            tries: What has been tried.

        Raises:
            RunedError: Another try would be of no use.
        """
        deadline = tries.deadline
        if isinstance(error, (QueueFullError, BackendUnavailableError)):
            yield Sleep(tries.patience.pause(error))
            return
        if not (self._spawn or tries.reconnect):
            raise error
        if isinstance(error, ShuttingDownError):
            if tries.drained >= _MAX_DRAIN:
                raise error
            yield from self._pause(_DRAIN_POLL, deadline)
            tries.drained += _DRAIN_POLL
        else:
            if tries.restarted or tries.retries == _MAX_RETRIES:
                raise error
            yield from self._pause(_RETRY_PAUSE, deadline)
            tries.retries += 1
        self._limits = None
        tries.restarted = yield Ensure(deadline.remaining())

    def _pause(self, seconds: float, deadline: Deadline) -> Flow[None]:
        remaining = deadline.remaining()
        yield Sleep(seconds if remaining is None else min(seconds, remaining))
