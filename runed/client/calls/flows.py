"""The flows of the calls that are answered by one message; `Client` and `AsyncClient` share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
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
from runed.client.calls.steps import Ensure, Flow, Send, Sleep
from runed.client.calls.texts import LARGE_TEXT, TEXT_OVERHEAD, check_length, encoded_length, listed, measure, relocated, split
from runed.client.options import Options, too_old
from runed.client.types import Embedding, Health, Info, Phase, Status, Vectors
from runed.errors import (
    BackendUnavailableError,
    BatchTooLargeError,
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
"""Seconds between the first two looks at Health during a bootstrap."""

_POLL_MOST = 0.25
"""Seconds between two looks at most; each pause is a quarter longer than the one before."""

_MAX_RETRIES = 3
"""Tries at most after a broken connection. A dying daemon closes its connections a moment before its listening socket, so that
it may seem to live on; this is why there are more tries than one."""

_RETRY_PAUSE = 0.05
"""Seconds between a broken connection and the next try."""

_DRAIN_POLL = 0.2
"""Seconds between two looks for the successor of a daemon that drains."""

_MAX_DRAIN = 30.0
"""Seconds to wait for that successor in all."""

PASSING = (QueueFullError, BackendUnavailableError, ShuttingDownError, DaemonUnavailableError)
"""The errors against which another try may help."""


class Tries:
    """The tries of one call so far.

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

    @property
    def known_model(self) -> str:
        """The name of the model as the daemon last told it; empty if it has not."""
        return "" if self._limits is None else self._limits.model_name

    def embed(self, text: str, options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed one text; returns shape (dim,)."""
        length = encoded_length(text)
        request = EmbedRequest()
        options.set_on(request)
        common = request.ByteSize()
        request.text = text

        def send(limits: Info | None = None) -> Flow[EmbedResponse]:
            if limits is not None:
                check_length(length + TEXT_OVERHEAD, limits.max_request_bytes - common)
            return self._send_when_ready("Embed", request, EmbedResponse, deadline)

        response = yield from (send() if length <= LARGE_TEXT else self._within_limits(send, deadline))
        options.check_known(response.fingerprint)
        if not response.vector:
            raise answers.no_vector()
        return np.array(response.vector, dtype=np.float32)

    def embed_batch(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed many texts by as many requests as the daemon's limits demand; returns shape (n, dim)."""
        texts = listed(texts)
        if not texts:
            dim = options.dimensions or (yield from self.wait_until_ready(deadline)).vector_dim
            return np.empty((0, dim), dtype=np.float32)
        return (yield from self._within_limits(partial(self._embed_batch, texts, options, deadline), deadline))

    def embed_items(
        self, texts: Iterable[str], options: Options, deadline: Deadline, *, with_route: bool
    ) -> Flow[list[Embedding | RunedError]]:
        """Embed many texts, and leave the others alone where one cannot be embedded; returns one outcome a text."""
        texts = listed(texts)
        if not texts:
            return []
        common = EmbedBatchRequest(per_item_errors=True, with_route=with_route)
        options.set_on(common)
        return (yield from self._within_limits(partial(self._embed_items, texts, common, deadline), deadline))

    def count_tokens(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[list[int]]:
        """Count the tokens of texts by as many requests as the daemon's limits demand; returns one number a text."""
        texts = listed(texts)
        if not texts:
            return []
        return (yield from self._within_limits(partial(self._count_tokens, texts, options, deadline), deadline))

    def info(self, deadline: Deadline) -> Flow[Info]:
        """Ask what the daemon and its model are; waits for engine and model, but not for a download."""
        return (yield from self._complete_info(deadline, refuse_download=True))

    def wait_until_ready(self, deadline: Deadline) -> Flow[Info]:
        """Wait until engine and model are there, a download included; returns the complete Info."""
        return (yield from self._complete_info(deadline, refuse_download=False))

    def health(self, deadline: Deadline) -> Flow[Health]:
        """Ask what the daemon is doing right now."""
        return answers.health((yield from self._send("Health", HealthRequest(), HealthResponse, deadline)))

    def shutdown(self, grace_seconds: int, deadline: Deadline) -> Flow[None]:
        """Ask the daemon to drain and exit; a daemon that is gone already is not started for that."""
        yield Send("Shutdown", ShutdownRequest(grace_seconds=grace_seconds), ShutdownResponse, deadline.remaining())

    def present_info(self, deadline: Deadline) -> Flow[Info]:
        """Ask what the daemon knows of itself and its model by now; its limits are always there."""
        response = yield from self._send_when_ready("Info", InfoRequest(), InfoResponse, deadline)
        self._limits = answers.info(response)
        return self._limits

    def _complete_info(self, deadline: Deadline, *, refuse_download: bool) -> Flow[Info]:
        while True:
            # A daemon refuses Info during a download; one of an earlier version answers what it knows at any time.
            with suppress(BootstrappingError):
                info = answers.info((yield from self._send("Info", InfoRequest(), InfoResponse, deadline)))
                if info.vector_dim:
                    self._limits = info
                    return info
            yield from self.wait_out_bootstrap(deadline, refuse_download=refuse_download)

    def _within_limits(self, call: Callable[[Info], Flow[T]], deadline: Deadline) -> Flow[T]:
        """Do a call within the daemon's limits, which are asked for once.

        Another daemon with smaller limits may have taken the place of the daemon that told them. If a request is too large by
        limits from before the call, they are asked for again.
        """
        known = self._limits
        limits = known or (yield from self.present_info(deadline))
        try:
            return (yield from call(limits))
        except (BatchTooLargeError, RequestTooLargeError):
            if known is None:
                raise
            limits = yield from self.present_info(deadline)
            if (limits.max_batch_size, limits.max_request_bytes) == (known.max_batch_size, known.max_request_bytes):
                raise
        return (yield from call(limits))

    def _embed_batch(self, texts: list[str], options: Options, deadline: Deadline, limits: Info) -> Flow[Vectors]:
        common = EmbedBatchRequest()
        options.set_on(common)
        vectors: Vectors | None = None
        space = answers.SpaceGuard()
        for start, end in _cut(texts, common, limits):
            try:
                response = yield from self._embed_part(texts[start:end], common, deadline)
            except InvalidRequestError as error:
                raise relocated(error, start, end - start) from None
            options.check_known(response.fingerprint)
            space.check(response.fingerprint)
            if vectors is None:
                vectors = np.empty((len(texts), len(response.embeddings[0].vector)), dtype=np.float32)
            for row, embedding in enumerate(response.embeddings, start):
                if not embedding.vector or len(embedding.vector) != vectors.shape[1]:
                    raise answers.no_vector()
                vectors[row] = embedding.vector
        assert vectors is not None
        return vectors

    def _embed_items(
        self, texts: list[str], common: EmbedBatchRequest, deadline: Deadline, limits: Info
    ) -> Flow[list[Embedding | RunedError]]:
        max_bytes = limits.max_request_bytes - common.ByteSize()
        outcomes: dict[int, Embedding | RunedError] = {}
        lengths: dict[int, int] = {}
        for index, text in enumerate(texts):
            try:
                lengths[index] = measure(text, index, max_bytes)
            except (InvalidTextError, RequestTooLargeError) as error:
                outcomes[index] = error
        sendable = list(lengths)
        space = answers.SpaceGuard()
        for start, end in split(list(lengths.values()), limits.max_batch_size, max_bytes):
            part = sendable[start:end]
            response = yield from self._embed_part([texts[index] for index in part], common, deadline)
            if not response.fingerprint:
                raise too_old("gives no details of an embedding")
            space.check(response.fingerprint)
            for index, item in zip(part, response.embeddings, strict=True):
                outcomes[index] = answers.outcome(item, response, index)
        return [outcomes[index] for index in range(len(texts))]

    def _embed_part(self, texts: list[str], common: EmbedBatchRequest, deadline: Deadline) -> Flow[EmbedBatchResponse]:
        request = EmbedBatchRequest(texts=texts)
        request.MergeFrom(common)
        response = yield from self._send_when_ready("EmbedBatch", request, EmbedBatchResponse, deadline)
        if len(response.embeddings) != len(texts):
            raise answers.no_vector()
        return response

    def _count_tokens(self, texts: list[str], options: Options, deadline: Deadline, limits: Info) -> Flow[list[int]]:
        common = CountTokensRequest()
        options.set_prompt_on(common)
        counts: list[int] = []
        for start, end in _cut(texts, common, limits):
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

    def _send_when_ready(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request, and wait out a bootstrap that is in its way."""
        while True:
            try:
                return (yield from self._send(method, request, response_type, deadline))
            except BootstrappingError:
                yield from self.wait_out_bootstrap(deadline)

    def wait_out_bootstrap(self, deadline: Deadline, *, refuse_download: bool = False) -> Flow[None]:
        """Watch Health until the daemon no longer loads, and report what changes.

        Args:
            deadline: The end of the call.
            refuse_download: Whether to raise `BootstrappingError` as soon as something is downloaded.
        """
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
                if refuse_download and _downloads(health):
                    raise _downloading(health)
                yield from self._pause(pause, deadline)
                if health.status is not Status.LOADING:
                    return
                pause = min(pause * 1.25, _POLL_MOST)
        except DeadlineExceededError as error:
            raise DeadlineExceededError(f"{error.message}: engine and model are not ready yet: {message}") from None

    def _send(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request; again if the daemon is too busy for the moment, or went away and may be started again.

        All requests that come here may be repeated: an embedding that is computed twice is the same embedding.
        """
        tries = Tries(deadline)
        while True:
            try:
                response: T = yield Send(method, request, response_type, deadline.remaining())  # type: ignore[arg-type] # T is one
                return response  # noqa: TRY300 # `else` would only be further away
            except DeadlineExceededError:
                if (refusal := tries.patience.last_refusal) is not None:
                    raise refusal from None
                if deadline.timeout is None:
                    raise
                # The error tells the time of the last try; the caller knows that of the whole call.
                raise deadline.exceeded() from None
            except PASSING as error:
                yield from self.recover(error, tries)

    def recover(self, error: RunedError, tries: Tries) -> Flow[None]:
        """Do what is to be done before another try.

        Args:
            error: Why the last try failed, one of `PASSING`.
            tries: The tries so far.

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


def _cut(texts: list[str], common: Message, limits: Info) -> Iterator[tuple[int, int]]:
    """Cut a batch into requests that keep to the daemon's limits.

    Args:
        texts: The texts of the batch.
        common: The fields that all its requests share.
        limits: The limits.

    Returns:
        The start and the end of each request, as for a slice.
    """
    max_bytes = limits.max_request_bytes - common.ByteSize()
    return split([measure(text, index, max_bytes) for index, text in enumerate(texts)], limits.max_batch_size, max_bytes)


def _downloads(health: Health) -> bool:
    return (
        health.status is Status.LOADING
        and health.phase in {Phase.FETCHING_LLAMA_SERVER, Phase.FETCHING_MODEL}
        and health.bytes_total > 0
    )


def _downloading(health: Health) -> BootstrappingError:
    done, total = health.bytes_done, health.bytes_total
    return BootstrappingError(
        f"engine and model are not there yet: {health.message}: {done} of {total} bytes; wait_until_ready waits for the rest",
        metadata={"bytes_done": str(done), "bytes_total": str(total)},
        retry_after=1.0,
    )
