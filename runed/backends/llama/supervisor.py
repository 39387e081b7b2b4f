"""Keeps one server running: one start for all who wait, replacement of one that died or hangs, giving up, and stopping."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from runed.backends.base import BackendStatus
from runed.backends.llama.http import ConnectionLostError
from runed.backends.llama.launcher import Server, Timings
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError
from runed.log import describe_exception, get_logger

_log = get_logger(__name__)

_DEATH_NOTICE = 0.05
"""How long a death takes at most to be noticed after the connections to the child broke, in seconds."""


class Supervisor:
    """Owns the server. All methods must be called in one event loop.

    Args:
        launch: Starts a server.
        timings: How patient to be.
    """

    def __init__(self, launch: Callable[[], Awaitable[Server]], timings: Timings) -> None:
        self._launch = launch
        self._timings = timings
        self._server: Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[Server] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._failures = 0
        self._refused_until: float | None = None
        self._replacing = False
        self.reason = ""
        self.restarts = 0

    @property
    def status(self) -> BackendStatus:
        """What the server is doing."""
        if self._server is not None:  # also while it is being stopped: its memory is not free yet
            return BackendStatus.READY
        if self._starting is not None:
            return BackendStatus.STARTING
        return BackendStatus.STOPPED if self._refused_until is None else BackendStatus.FAILED

    @property
    def pid(self) -> int:
        """The process id of the server, or 0."""
        return self._server.child.pid if self._server is not None else 0

    async def ready(self) -> Server:
        """Give the server, started if need be; a caller that is cancelled does not disturb the others.

        Raises:
            BackendUnavailableError: It did not come up, was stopped meanwhile, or was given up a moment ago.
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
        """End the server, or the start of one; concurrent calls share one stop."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._shut_down())
            self._stopping.add_done_callback(self._stop_ended)
        await asyncio.shield(self._stopping)

    async def lost(self, server: Server, error: ConnectionLostError) -> bool:
        """Find out whether a server whose connection broke is dead.

        Args:
            server: The server that was asked.
            error: What happened.

        Returns:
            Whether it is.
        """
        await asyncio.wait({server.child.exited}, timeout=_DEATH_NOTICE)
        if error.unreachable and not server.child.exited.done():
            # It lives, but its socket is gone or nobody listens on it: nobody will ever reach it again.
            server.verdict = "llama-server could not be reached any more by its socket, so it was replaced"
            await server.child.kill()
        return server.child.exited.done()

    def answered(self) -> None:
        """Take note of an answer: whatever failed before, it was not for good."""
        self._failures = 0

    def unavailable(self, server: Server) -> BackendUnavailableError:
        """Say of a dead server that, and when, its replacement can be asked."""
        return BackendUnavailableError(
            f"{server.obituary()}; it is being replaced, so try again", retry_after=max(1.0, self._backoff())
        )

    def _passing(self) -> asyncio.Task[None] | None:
        """Give what must end before anything can be said of the server: a stop, or the notice of a death."""
        if self._stopping is None and self._server is not None and self._server.child.exited.done():
            return self._watcher
        return self._stopping

    def _begin_start(self, *, delay: float) -> None:
        self._starting = asyncio.create_task(self._bring_up(delay))
        self._starting.add_done_callback(self._start_ended)

    async def _bring_up(self, delay: float) -> Server:
        while True:
            await asyncio.sleep(delay)
            started = time.monotonic()
            try:
                server = await self._launch()
            except BackendError as error:
                if self._give_up(error):
                    raise
                delay = self._backoff()
                continue
            self._server = server
            self._watcher = asyncio.create_task(self._watch(server))
            self._refused_until = None
            self.restarts += self._replacing
            self._replacing = False
            self.reason = ""
            _log.info("llama-server ready", pid=self.pid, seconds=round(time.monotonic() - started, 3), restarts=self.restarts)
            return server

    def _give_up(self, error: BackendError) -> bool:
        """Count a failure; give up if it is one too many, or one that another try would only repeat."""
        self._failures += 1
        self.reason = error.message
        given_up = self._failures >= self._timings.max_failures or isinstance(error, BackendFaultError)
        _log.error("llama-server failed", reason=error.message, failures=self._failures, given_up=given_up)
        if given_up:
            self._refused_until = time.monotonic() + self._timings.pause
            error.retry_after = self._timings.pause
        return given_up

    def _backoff(self) -> float:
        delay = min(self._timings.backoff * 2.0 ** max(0, self._failures - 1), self._timings.backoff_limit)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 # jitter, no secret

    def _refuse_after_giving_up(self) -> None:
        if self._refused_until is not None and (left := self._refused_until - time.monotonic()) > 0:
            raise BackendUnavailableError(
                f"the engine failed and is tried again in {left:.0f} s: {self.reason}", retry_after=left
            )

    async def _watch(self, server: Server) -> None:
        """Wait for the end of a server, and replace it unless the end was wanted."""
        try:
            await self._until_dead_or_hung(server)
        except Exception as error:  # noqa: BLE001 # a server that nobody watches could hang, or be dead, unnoticed
            _log.error("llama-server cannot be watched", **describe_exception(error))
            server.verdict = "llama-server could not be watched any longer, so it was replaced"
            await server.child.kill()
        if server.closing:
            return
        # No await before the next start has begun: a request that came in between would begin a second one.
        self._server = None
        self._replacing = True
        if not self._give_up(BackendUnavailableError(server.obituary())):
            self._begin_start(delay=self._backoff())
        await server.http.close()

    async def _until_dead_or_hung(self, server: Server) -> None:
        exited, hang = server.child.exited, self._timings.hang
        before: tuple[float, int] | None = None
        while True:
            since = time.monotonic()
            if (await asyncio.wait({exited}, timeout=hang))[0]:
                return
            silent = server.waiting_since is not None and server.waiting_since <= since
            progress = server.child.progress() if silent else None
            if silent and progress == before and not await self._answers(server):
                server.verdict = f"llama-server did not answer for {3 * hang:g} seconds and did nothing, so it was replaced"
                await server.child.kill()
                return
            before = progress

    async def _answers(self, server: Server) -> bool:
        """Ask a silent server something small: those whose questions it did not answer may only have gone away."""
        before = server.child.progress()
        try:
            async with asyncio.timeout(self._timings.hang):
                with server.question():
                    await server.http.embed(["?"])
        except TimeoutError:
            return server.child.progress() != before
        except (BackendError, ConnectionLostError):
            return True  # it answered something, or its death shows by itself
        return True

    async def _shut_down(self) -> None:
        # Once is not enough: while one of them ends, another may begin, such as the replacement of a server that just died.
        while self._server is not None or self._starting is not None or not (self._watcher is None or self._watcher.done()):
            if self._starting is not None:
                self._starting.cancel()
                await asyncio.wait({self._starting})
            if (server := self._server) is not None:
                try:
                    await server.close(self._timings.term_grace)
                finally:
                    self._server = None
                _log.info("llama-server stopped", pid=server.child.pid)
            if self._watcher is not None:
                await asyncio.wait({self._watcher})
        self._replacing = False

    def _start_ended(self, task: asyncio.Task[Server]) -> None:
        self._starting = None
        # Whoever waits is told; this is for the case that nobody does.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, BackendError):
            _log.error("llama-server start failed unexpectedly", **describe_exception(error))

    def _stop_ended(self, _: asyncio.Task[None]) -> None:
        self._stopping = None
