"""The flows about the daemon itself, and the sending of every request."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TypeVar

from google.protobuf.message import Message
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchResponse,
    EmbedResponse,
    EmbedStreamResponse,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    ListModelsRequest,
    ListModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    ShutdownRequest,
    ShutdownResponse,
    WarmUpRequest,
    WarmUpResponse,
)

from runed.client.calls import answers
from runed.client.calls.notices import warn
from runed.client.calls.patience import Deadline, Patience
from runed.client.calls.steps import Ensure, Flow, Send, Sleep
from runed.client.options import Options, check_model, check_named
from runed.client.progress import DownloadBar
from runed.client.types import Health, Info, Model, Phase, Status
from runed.errors import (
    BackendUnavailableError,
    BootstrappingError,
    DaemonUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    RunedError,
    ShuttingDownError,
)

T = TypeVar("T")

_POLL_FIRST = 0.1
"""Seconds between the first two calls of Health during a bootstrap."""

_POLL_MOST = 0.25
"""Most seconds between two calls of Health. Each pause is a quarter longer than the last one."""

_MAX_RETRIES = 3
"""Most tries after a broken connection. One is not enough: a dying daemon closes its connections a moment before its
listening socket, and seems to live on."""

_MAX_GRACE = 2**31 - 1
"""The most seconds of grace that a request can hold. The daemon takes more than 300 for 300."""

_RETRY_PAUSE = 0.05
"""Seconds between a broken connection and the next try."""

_DRAIN_POLL = 0.2
"""Seconds between two checks for the successor of a daemon that drains."""

_MAX_DRAIN = 30.0
"""Seconds to wait for that successor in total."""

PASSING = (QueueFullError, BackendUnavailableError, ShuttingDownError, DaemonUnavailableError)
"""Errors after which another try may succeed."""


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
        """Start the count anew, after a try that made progress."""
        self.patience.reset()
        self.retries = 0
        self.drained = 0.0


class DaemonFlows:
    """The flows of one client about the daemon itself.

    Args:
        spawn: Whether a daemon that went away may be started again.
        on_progress: Called with each change of Health while an embedding waits for engine and model.
        bar: Shows downloads that a call waits for; None for no such display.
    """

    def __init__(self, *, spawn: bool, on_progress: Callable[[Health], None] | None, bar: DownloadBar | None = None) -> None:
        self._spawn = spawn
        self._on_progress = on_progress
        self._bar = bar
        self._limits: Info | None = None
        self._watched: set[str] = set()  # models whose start was looked at
        self._called: set[str] = set()  # models that a call has waited for
        self._notes_roles = True
        self._noted: set[str] = set()  # models for which a role had no prompt

    @property
    def known_model(self) -> str:
        """The name of the model as the daemon last told it; empty if it has not told one."""
        return "" if self._limits is None else self._limits.model_name

    def info(self, deadline: Deadline, model: str | None = None) -> Flow[Info]:
        """Return the description of the daemon and its model. Wait for engine and model, but not for a download."""
        return (yield from self._complete_info(deadline, model, refuse_download=True))

    def wait_until_ready(self, deadline: Deadline, model: str | None = None) -> Flow[Info]:
        """Wait until engine and model are there, also for a download. Return the complete Info."""
        return (yield from self._complete_info(deadline, model, refuse_download=False))

    def warm_up(self, deadline: Deadline, model: str | None = None) -> Flow[None]:
        """Wait until the engine has loaded its model, also for a download. Start it if it is suspended."""
        if not model:
            yield from self.send_when_ready("WarmUp", WarmUpRequest(), WarmUpResponse, deadline)
        else:  # a daemon with one model knows WarmUp, but not this
            yield from self.send_when_ready("LoadModel", LoadModelRequest(model=model), LoadModelResponse, deadline)

    def health(self, deadline: Deadline, model: str | None = None) -> Flow[Health]:
        """Return the present state of the daemon and of a model."""
        check_model(model)
        request = HealthRequest(model=model or "")
        health = answers.health((yield from self._send("Health", request, HealthResponse, deadline)))
        check_named(model, health.model)
        return health

    def list_models(self, deadline: Deadline) -> Flow[list[Model]]:
        """Return the models that requests may name."""
        response = yield from self._send("ListModels", ListModelsRequest(), ListModelsResponse, deadline)
        return [answers.model(message) for message in response.models]

    def shutdown(self, grace_seconds: int, deadline: Deadline) -> Flow[None]:
        """Ask the daemon to drain and exit. No daemon is started for that.

        Raises:
            InvalidRequestError: This is no number of seconds that the request can hold.
        """
        if not 0 <= operator.index(grace_seconds) <= _MAX_GRACE:
            raise InvalidRequestError(f"grace_seconds is {grace_seconds}; give a whole number from 0 to {_MAX_GRACE}")
        yield Send("Shutdown", ShutdownRequest(grace_seconds=grace_seconds), ShutdownResponse, deadline.remaining())

    def ignore_roles(self) -> None:
        """Warn of no role, since the caller does not choose it."""
        self._notes_roles = False

    def ignore_default(self) -> None:
        """Watch no start of the default model, which a call to rerank does not mean if it names no model."""
        self._watched.add("")

    def note_role(
        self, options: Options, answer: EmbedResponse | EmbedBatchResponse | EmbedStreamResponse, deadline: Deadline
    ) -> Flow[None]:
        """Warn once for each model if the role of a call has added nothing, and nobody knows whether that is right.

        It is right for a model that was trained without prompts, and for the documents of one that has a prompt for queries.

        Args:
            options: The options of the call.
            answer: Its answer, which tells model and prompt.
            deadline: The end of the call.
        """
        role, model = options.role, answer.model or options.model or "this model"
        if role is None or answer.prompt or not self._notes_roles or model in self._noted:
            return
        self._noted.add(model)
        if (yield from self.present_info(deadline, options.model)).prompts_unknown:
            warn(
                f'role="{role}" adds nothing: no prompt of {model} is known. If it was trained with prompts, name them as '
                "query_prompt and document_prompt of the model in config.json (`runed add` writes them); an empty query_prompt "
                "says that it has none"
            )

    def present_info(self, deadline: Deadline, model: str | None = None) -> Flow[Info]:
        """Return the facts that the daemon knows so far. Its limits are always among them."""
        response = yield from self.send_when_ready("Info", InfoRequest(model=model or ""), InfoResponse, deadline)
        self._limits = answers.info(response)
        return self._limits

    def _complete_info(self, deadline: Deadline, model: str | None, *, refuse_download: bool) -> Flow[Info]:
        check_model(model)
        yield from self.watch_start(deadline, model, refuse_download=refuse_download)
        request = InfoRequest(model=model or "")
        while True:
            # A daemon refuses Info during a download. One of an earlier version answers the facts that it knows at any time.
            with suppress(BootstrappingError):
                info = answers.info((yield from self._send("Info", request, InfoResponse, deadline)))
                if info.vector_dim:
                    check_named(model, info.model)
                    self._limits = info
                    return info
            yield from self.wait_out_bootstrap(deadline, model, refuse_download=refuse_download)

    def send_when_ready(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request. If a bootstrap of its model refuses it, wait for the bootstrap and send it again."""
        model: str = getattr(request, "model", "")
        yield from self.watch_start(deadline, model)
        # Info, which comes before some calls, does not wait for the engine.
        is_first = method != "Info" and model not in self._called
        if is_first:
            self._called.add(model)
        with self._bar.first_call() if self._bar and is_first else nullcontext():
            while True:
                try:
                    return (yield from self._send(method, request, response_type, deadline))
                except BootstrappingError:
                    yield from self.wait_out_bootstrap(deadline, model)

    def wait_out_bootstrap(
        self, deadline: Deadline, model: str | None, *, refuse_download: bool = False, refused: bool = True
    ) -> Flow[None]:
        """Poll Health until the daemon no longer loads, and report each change.

        Args:
            deadline: The end of the call.
            model: The name of the model that the call needs; None or "" means the default one.
            refuse_download: Whether to raise `BootstrappingError` as soon as something is downloaded.
            refused: Whether a bootstrap has refused a call. Otherwise a daemon that does not load is left at once.
        """
        with self._bar.waiting() if self._bar and refused else nullcontext() as show:
            yield from self._poll(deadline, model, show, refuse_download=refuse_download, refused=refused)

    def _poll(
        self,
        deadline: Deadline,
        model: str | None,
        show: Callable[[Health], None] | None,
        *,
        refuse_download: bool,
        refused: bool,
    ) -> Flow[None]:
        pause = _POLL_FIRST
        told: object = None
        message = ""
        try:
            while True:
                health = yield from self.health(deadline, model)
                message = health.message
                if not (refused or told or health.status is Status.LOADING):
                    return
                news = (health.status, health.phase, health.bytes_done, health.bytes_total, message)
                for tell in (self._on_progress, show):
                    if tell and news != told:
                        tell(health)
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
            if not (refused or told):
                raise
            raise DeadlineExceededError(f"{error.message}: engine and model are not ready yet: {message}") from None

    def watch_start(self, deadline: Deadline, model: str | None, *, refuse_download: bool = False) -> Flow[None]:
        """Report the progress of a model that starts. The daemon would let the first call for it wait without telling any."""
        if self._on_progress is None or (model or "") in self._watched:
            return
        self._watched.add(model or "")
        yield from self.wait_out_bootstrap(deadline, model, refuse_download=refuse_download, refused=False)

    def _send(self, method: str, request: Message, response_type: type[T], deadline: Deadline) -> Flow[T]:
        """Send a request.

        Send it again if the daemon is too busy for the moment, or went away and may be started again. Every request here may be
        repeated: an embedding that is computed twice is the same embedding.
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
                # The error tells the time of the last try, but the caller knows the time of the whole call.
                raise deadline.exceeded() from None
            except PASSING as error:
                yield from self.recover(error, tries)

    def recover(self, error: RunedError, tries: Tries) -> Flow[None]:
        """Prepare another try: wait, or make sure that a daemon listens.

        Args:
            error: The error of the last try, one of `PASSING`.
            tries: The tries so far.

        Raises:
            RunedError: Another try would not help.
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
            if tries.retries == _MAX_RETRIES:
                raise error
            yield from self._pause(_RETRY_PAUSE, deadline)
            tries.retries += 1
        self._limits, self._watched = None, set()
        yield Ensure(deadline.remaining())

    def _pause(self, seconds: float, deadline: Deadline) -> Flow[None]:
        remaining = deadline.remaining()
        yield Sleep(seconds if remaining is None else min(seconds, remaining))


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
