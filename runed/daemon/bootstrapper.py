"""Gets engine and model in the background, while calls wait for them or are refused.

If the device of the engine fails, it gets another engine in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runed.bootstrap import Phase, Progress
from runed.daemon.draining import Draining
from runed.daemon.served_model import ServedModel, Situation
from runed.domain.status import LoadingPhase, Status
from runed.errors import (
    ArchiveError,
    BackendUnavailableError,
    BootstrappingError,
    ManifestError,
    ModelFileError,
    RunedError,
    SettingsError,
    UnsupportedPlatformError,
    VerificationError,
)
from runed.log import describe_exception, get_logger

if TYPE_CHECKING:
    from runed.scheduling.scheduler import Scheduler

BOOTSTRAP_PAUSE = 5.0
"""Seconds after a failed bootstrap before a call starts the next one."""

MAX_WAIT = 60.0
"""Most seconds that a call waits for engine and model while nothing is downloaded."""

_RETRY_SECONDS = 1.0
"""Seconds after which a refused call may be tried again."""

_LASTING = (VerificationError, ArchiveError, UnsupportedPlatformError)
"""Failures without a remedy of their own that stay until somebody changes something. A client that tried again would keep its
user waiting for a minute."""

_LOADING_PHASES = {
    Phase.FETCHING_LLAMA_SERVER: LoadingPhase.FETCHING_LLAMA_SERVER,
    Phase.FETCHING_MODEL: LoadingPhase.FETCHING_MODEL,
    Phase.CHOOSING_ENGINE: LoadingPhase.STARTING_LLAMA_SERVER,
}

_NOTHING_DONE = Progress(Phase.FETCHING_LLAMA_SERVER, 0, 0, "looking for engine and model")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A bootstrap that failed.

    Attributes:
        message: The reason, for people.
        lasting: Whether another try fails in the same way until somebody changes something.
        retry_at: The time of the monotonic clock from which on a call may start the next bootstrap.
    """

    message: str
    lasting: bool
    retry_at: float


class Bootstrapper:
    """Gets engine and model. After a failure, a call that needs them starts another try.

    Args:
        build: Gets engine and model and returns them, ready to be started. Its argument is a function that takes the progress.
        draining: Tells whether the daemon takes calls.
        starts: Whether to start the engine before the first text.
        note: Is told whether the bootstrap that has ended failed.

    Attributes:
        model: The model; None until it is there.
        progress: The progress of the bootstrap that runs, or of the last one.
    """

    def __init__(
        self,
        build: Callable[[Callable[[Progress], None]], Awaitable[ServedModel]],
        draining: Draining,
        *,
        starts: bool = True,
        note: Callable[[bool], None] = lambda _failed: None,
    ) -> None:
        self.model: ServedModel | None = None
        self.progress = _NOTHING_DONE
        self._build = build
        self._draining = draining
        self._starts = starts
        self._note = note
        self._failure: _Failure | None = None
        self._bootstrap: asyncio.Task[None] | None = None
        # Cleared only while a bootstrap runs that has found nothing to download, or has nothing left but to choose the engine.
        self._settled = asyncio.Event()

    @property
    def situation(self) -> Situation:
        """The status, phase and message of `Health`."""
        if self.model is not None:
            return self.model.situation
        if self._failure is not None:
            return Status.DEGRADED, None, self._failure.message
        return Status.LOADING, _LOADING_PHASES[self.progress.phase], self.progress.message

    def begin(self) -> None:
        """Begin a bootstrap."""
        self._bootstrap = asyncio.create_task(self._run(self._start_over()))

    def try_again(self, *, at_once: bool = False) -> None:
        """Begin another bootstrap if the last one failed long enough ago, or `at_once` if it failed."""
        if self._failure is not None and (at_once or self._failure.retry_at <= time.monotonic()):
            self.begin()

    async def settle(self) -> None:
        """Wait for a bootstrap that downloads nothing more, for at most `MAX_WAIT` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_WAIT):
                await self._settled.wait()

    async def scheduler(self) -> Scheduler:
        """Return the scheduler of the model, as soon as it is there.

        Raises:
            BootstrappingError: Engine or model are being downloaded, or were not found within `MAX_WAIT` seconds.
            BackendUnavailableError: Engine or model cannot be installed.
            ShuttingDownError: The daemon drains.
            SpaceChangedError: An engine on another machine gives vectors of another space than before.
        """
        self._draining.check()
        if self.model is not None and self.model.device_failed:
            self.begin()
        if self.model is not None and self.model.space_changed:
            await self.model.scheduler.start()  # raises the error, and looks whether the space is back
        if self.model is None:
            self.try_again()
            await self.settle()
            self._draining.check()
        if self.model is None:
            raise self._refusal()
        return self.model.scheduler

    def interrupt(self) -> None:
        """End a bootstrap without a model. Waiting calls go on at once."""
        self._settled.set()
        if self._bootstrap is not None and self.model is None:
            self._bootstrap.cancel()

    async def close(self) -> None:
        """End everything that was begun, including the engine."""
        if self._bootstrap is not None:
            # Not a second cancel: the first one may be waiting for a thread that still writes.
            if not self._bootstrap.cancelling():
                self._bootstrap.cancel()
            await asyncio.wait([self._bootstrap])
        if self.model is not None:
            await self.model.scheduler.close()

    def _start_over(self) -> ServedModel | None:
        """Forget everything of the last bootstrap. Return its model."""
        model, self.model = self.model, None
        self._failure = None
        self.progress = _NOTHING_DONE
        self._settled.clear()
        return model

    async def _run(self, failed: ServedModel | None) -> None:
        """Get a model and start its engine, until one starts or none is left.

        Args:
            failed: A model whose device failed, to be replaced.
        """
        while True:
            if failed is not None:
                await failed.give_way()
            await self._get_model()
            if (model := self.model) is None or not self._starts:
                return
            # A failed start shows in the backend's state, and the next call tries again.
            with contextlib.suppress(RunedError):
                await model.scheduler.start()
            if not model.device_failed or self.model is not model:  # a call may have begun the next bootstrap
                return
            failed = self._start_over()

    async def _get_model(self) -> None:
        try:
            self.model = await self._build(self._report)
            self._note(False)
        except SettingsError as error:
            # The daemon keeps the settings that it was started with.
            remedy = "then run `runed stop`, since this daemon began with the setting as it was"
            self._fail(f"{error.message}; {remedy}", error.reason, lasting=True)
        except (ManifestError, ModelFileError) as error:
            self._fail(f"{error.message}; if you correct that by a setting, then run `runed stop`", error.reason, lasting=True)
        except RunedError as error:
            no_use = (
                isinstance(error, BackendUnavailableError) and error.retry_after is None
            )  # such as with a key that is refused
            self._fail(error.message, error.reason, lasting=no_use or isinstance(error, _LASTING))
        except Exception as error:  # noqa: BLE001 # the daemon must live on to tell the failure
            _log.error("bootstrap failed unexpectedly", **describe_exception(error))
            self._fail(f"the bootstrap failed unexpectedly ({type(error).__name__}); the daemon's log says where")
        finally:
            self._settled.set()

    def _report(self, progress: Progress) -> None:
        self.progress = progress
        if progress.downloading:
            self._settled.set()
        elif progress.phase is Phase.CHOOSING_ENGINE:
            self._settled.clear()  # all is there, and this takes seconds, as the start of an engine does

    def _fail(self, message: str, code: str = "INTERNAL", *, lasting: bool = False) -> None:
        _log.error("bootstrap failed", reason=message, code=code)
        self._failure = _Failure(message, lasting, time.monotonic() + BOOTSTRAP_PAUSE)
        self._note(True)

    def _refusal(self) -> RunedError:
        if self._failure is not None:
            pause = None if self._failure.lasting else max(self._failure.retry_at - time.monotonic(), 0.0)
            return BackendUnavailableError(self._failure.message, retry_after=pause)
        progress = self.progress
        step = progress.message
        if progress.bytes_total:
            step += f", {progress.bytes_done:,} of {progress.bytes_total:,} bytes are done"
        return BootstrappingError(
            f"engine and model are not there yet: {step}; Health tells the progress", retry_after=_RETRY_SECONDS
        )
