"""Keeps one server running. It starts the server once for all callers, replaces it if it dies or hangs, and stops it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from runed.backends.base import BackendStatus
from runed.backends.engine.interface import ConnectionLostError
from runed.backends.engine.launcher import DeviceError, ModelReplacedError
from runed.backends.engine.server import UNREACHABLE, EngineServer
from runed.backends.engine.timings import Timings
from runed.backends.engine.watch import POISONED, Watch
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError, ModelFileError
from runed.log import describe_exception, get_logger

_DEVICE_FAILURES = 2
"""Failed starts in a row on a device after which it is given up."""

_log = get_logger(__name__)


class Supervisor:
    """Owns the server. All methods must be called in one event loop.

    Args:
        launch: Starts a server.
        timings: Time limits, and the number of tries.
        engine: The name of the engine, for the log.

    Attributes:
        restarts: The number of servers that died and were replaced.
        wakeups: The number of servers that were started for a call.
        waking_seconds: The time of these starts together, with failed tries and the pauses between them.
    """

    def __init__(self, launch: Callable[[], Awaitable[EngineServer]], timings: Timings, *, engine: str) -> None:
        self._launch = launch
        self._timings = timings
        self._engine = engine
        self._server: EngineServer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[EngineServer] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._failures = 0
        self._refused_until: float | None = None
        self._replacing = False
        self._failure = ""
        self._device_failed = False
        self.restarts = 0
        self.wakeups = 0
        self.waking_seconds = 0.0

    @property
    def status(self) -> BackendStatus:
        """The state of the server."""
        if self._server is not None:  # also while it is being stopped: its memory is not free yet
            return BackendStatus.SILENT if self._server.doubt else BackendStatus.READY
        if self._starting is not None:
            return BackendStatus.STARTING
        if self._device_failed:
            return BackendStatus.DEVICE_FAILED
        return BackendStatus.STOPPED if self._refused_until is None else BackendStatus.FAILED

    @property
    def reason(self) -> str:
        """The reason why the server is silent, the last one died, or the last start failed; "" if all is well."""
        return self._server.doubt if self._server is not None else self._failure

    @property
    def pid(self) -> int:
        """The process id of the server, or 0."""
        return self._server.child.pid if self._server is not None else 0

    async def ready(self) -> EngineServer:
        """Return the server, and start it if none runs. All callers share one start, which goes on if one of them is cancelled.

        Raises:
            BackendUnavailableError: It did not come up, was stopped meanwhile, or the pause after too many failures lasts.
            BackendFaultError: It came up, but failed its self-test.
        """
        while (passing := self._passing()) is not None:
            await asyncio.wait({passing})
        if self._server is not None:
            return self._server
        if self._starting is None:
            self._refuse_after_giving_up()
            self._begin_start(delay=0.0)
        assert self._starting is not None
        task = self._starting
        await asyncio.wait({task})
        if task.cancelled():
            raise BackendUnavailableError(
                "the engine was stopped while it started; try again", retry_after=self._timings.backoff
            )
        return task.result()

    async def stop(self) -> None:
        """Stop the server, or its start. Concurrent calls share one stop."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._shut_down())
            self._stopping.add_done_callback(self._stop_ended)
        await asyncio.shield(self._stopping)

    async def lost(self, server: EngineServer, error: ConnectionLostError) -> bool:
        """Check whether a server is dead after its connection broke. Kill it if it accepts no connection any more.

        Args:
            server: The server of the broken connection.
            error: The loss of the connection.
        """
        if not await server.has_died() and error.unreachable:
            await server.condemn(UNREACHABLE)
        return server.child.exited.done()

    async def is_sound(self, server: EngineServer) -> bool:
        """Check by a short text whether a server that gave a wrong answer can be used. Kill it if it cannot."""
        try:
            await server.check()
        except ConnectionLostError as error:
            if server.closing or await self.lost(server, error):
                return False
        except BackendFaultError:
            pass
        else:
            return True
        server.poisoned = True
        await server.condemn(POISONED)
        return False

    def answered(self) -> None:
        """Forget the failures so far, since an engine answered."""
        self._failures = 0

    def _passing(self) -> asyncio.Task[None] | None:
        """Return the task that must end before the state of the server is known: a stop, or the notice of a death."""
        if self._stopping is None and self._server is not None and self._server.child.exited.done():
            return self._watcher
        return self._stopping

    def _begin_start(self, *, delay: float) -> None:
        self._starting = asyncio.create_task(self._bring_up(delay))
        self._starting.add_done_callback(self._start_ended)

    async def _bring_up(self, delay: float) -> EngineServer:
        began = time.monotonic()
        while True:
            await asyncio.sleep(delay)
            started = time.monotonic()
            try:
                server = await self._launch()
            except BackendError as error:
                if self._has_failed(error):
                    self._refused_until = time.monotonic()
                    self._device_failed = isinstance(error, DeviceError)
                    # A caller must not be told to try again if that cannot help, and to look at the file costs nothing.
                    if not isinstance(error, ModelReplacedError):
                        self._refused_until += self._timings.pause
                        error.retry_after = self._timings.backoff if self._device_failed else self._timings.pause
                    raise
                delay = self._backoff()
                continue
            self._server = server
            self._watcher = asyncio.create_task(self._watch(server))
            self._refused_until = None
            if self._replacing:
                self.restarts += 1
            else:
                self.wakeups += 1
                self.waking_seconds += time.monotonic() - began
            self._replacing = False
            self._failure = ""
            _log.info(
                f"{self._engine} ready", pid=self.pid, seconds=round(time.monotonic() - started, 3), restarts=self.restarts
            )
            return server

    def _has_failed(self, error: BackendError) -> bool:
        """Count a failure. Return whether to give up: after too many failures, or if another try would fail in the same way."""
        self._failures += 1
        self._failure = error.message
        # One more try for a device: the memory of an engine that has just died may not be free yet.
        most = _DEVICE_FAILURES if isinstance(error, DeviceError) else self._timings.max_failures
        given_up = self._failures >= most or isinstance(error, BackendFaultError | ModelFileError | ModelReplacedError)
        _log.error(f"{self._engine} failed", reason=error.message, failures=self._failures, given_up=given_up)
        return given_up

    def _backoff(self) -> float:
        delay = min(self._timings.backoff * 2.0 ** max(0, self._failures - 1), self._timings.backoff_limit)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 # jitter, no secret

    def _refuse_after_giving_up(self) -> None:
        if self._refused_until is not None and (left := self._refused_until - time.monotonic()) > 0:
            raise BackendUnavailableError(
                f"the engine failed and is tried again in {left:.0f} s: {self.reason}", retry_after=left
            )

    async def _watch(self, server: EngineServer) -> None:
        """Wait for the end of a server, and replace it unless it was stopped on purpose."""
        try:
            await Watch(server, self._timings).until_dead()
        except Exception as error:  # noqa: BLE001 # nobody would notice the death or the hang of a server without a watcher
            _log.error(f"{self._engine} cannot be watched", **describe_exception(error))
            await server.condemn("could not be watched any longer")
        if server.closing:
            return
        # No await before the next start has begun: a request that came in between would begin a second start.
        self._server = None
        self._replacing = True
        if not self._is_left_dead(server):
            self._begin_start(delay=self._backoff())
        server.http.close()

    def _is_left_dead(self, server: EngineServer) -> bool:
        """Note a death. Return whether the next start waits for a request, after too many deaths while nobody waited."""
        if server.owes:
            # Not a failure of the engine: the text may be to blame. Other callers must not be refused for it.
            self._failure = server.obituary()
            _log.error(f"{self._engine} died", reason=self._failure)
            return False
        if not self._has_failed(BackendUnavailableError(server.obituary())):
            return False
        self._failures = 0  # so that the next start has all its tries
        return True

    async def _shut_down(self) -> None:
        # In a loop: while one task ends, another may begin, such as the replacement of a server that just died.
        while self._server is not None or self._starting is not None or not (self._watcher is None or self._watcher.done()):
            if self._starting is not None:
                self._starting.cancel()
                await asyncio.wait({self._starting})
            if (server := self._server) is not None:
                try:
                    await server.close(self._timings.term_grace)
                finally:
                    self._server = None
                _log.info(f"{self._engine} stopped", pid=server.child.pid)
            if self._watcher is not None:
                await asyncio.wait({self._watcher})
        self._replacing = False

    def _start_ended(self, task: asyncio.Task[EngineServer]) -> None:
        self._starting = None
        # Waiting callers get the error. Without any, only the log tells it.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, BackendError):
            _log.error(f"{self._engine} start failed unexpectedly", **describe_exception(error))

    def _stop_ended(self, _: asyncio.Task[None]) -> None:
        self._stopping = None
