"""Starts one engine: it frees the socket, starts the process, waits for the model, and runs the self-test."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from runed.backends.engine.interface import ConnectionLostError, EngineCommand, EngineInterface
from runed.backends.engine.process import ChildProcess, OutputLog, reap_orphan
from runed.backends.engine.self_test import SelfTest, check_again, check_engine
from runed.backends.engine.server import EngineServer
from runed.backends.engine.stillness import Stillness
from runed.backends.engine.timings import Timings
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError, ForeignPathError
from runed.files import open_regular, run_in_thread
from runed.log import get_logger
from runed.os_errors import explain
from runed.paths import Paths, ensure_private_dir, ensure_socket_dir
from runed.processes import describe_exit

_C = TypeVar("_C", bound=EngineCommand)

_log = get_logger(__name__)


class DeviceError(BackendUnavailableError):
    """The engine died while it started, or its vectors are wrong, and another engine can serve in place of it.

    Such as on a device, where the same vectors may be right on the processors.
    """


class ModelReplacedError(BackendUnavailableError):
    """A file of the model is another one than at the start of the daemon, or gone. No other try can help."""


class Launcher(Generic[_C]):
    """Starts the engine of one model, as often as it is needed. A subclass knows the ways of one engine.

    Args:
        command: The command.
        connect: Makes the interface of a server that a command starts.
        paths: The home.
        holds_home: Returns whether the home is still this process's.
        timings: Time limits for the engine.
    """

    _remedy: ClassVar[str]
    """What the user can do if the program itself cannot be started."""

    def __init__(
        self,
        command: _C,
        *,
        connect: Callable[[_C], EngineInterface],
        paths: Paths,
        holds_home: Callable[[], bool],
        timings: Timings,
    ) -> None:
        self._command = command
        self._connect = connect
        self._paths = paths
        self._timings = timings
        self._holds_home = holds_home
        self._tried = False
        self._self_test: SelfTest | None = None
        self._files = self._files_of_model()
        self._file_states = self._states()
        self._refused_states: list[tuple[int, int, int] | None] = []

    @property
    def command(self) -> _C:
        """The command of the last start, or of the next one if there was none."""
        return self._command

    @property
    def company_cosine(self) -> float:
        """See `BackendState.company_cosine`."""
        return self._self_test.company_cosine if self._self_test else 0.0

    async def launch(self) -> EngineServer:
        """Start the server and wait until it is ready.

        Returns:
            The server; the caller closes it.

        Raises:
            ModelReplacedError: A file of the model is not that of the identity.
            DeviceError: It did not come up, or its vectors are wrong, and another engine can serve in place of it.
            BackendUnavailableError: It did not come up.
            BackendFaultError: It came up, but its vectors are wrong.
            ModelFileError: This engine cannot serve the file.
        """
        await self._check_files()
        self._tried = False
        try:
            return await self._launch()
        except BackendError as error:
            if not self._command.is_replaceable or not self._tried:
                raise
            raise DeviceError(error.message) from None

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [_file_state(path) for path in self._files]

    async def _check_files(self) -> None:
        """Refuse another file than that of the identity, which clients keep with their vectors. The same one may come back."""
        model = self._command.model
        states = self._states()
        if states == self._file_states:
            return
        if None in states:
            raise ModelReplacedError(f"the model {model} is missing; put it back, or run `runed stop` and choose another one")
        # A refused file is read once, since a large one takes seconds.
        if len(states) == 1 and states != self._refused_states:
            sha256 = await run_in_thread(partial(_sha256, model))
            if states == self._states():  # otherwise it is unknown which content was read
                if sha256 == self._command.info.sha256:
                    _log.info("the model was put back as it was", model=model.name)
                    self._file_states = states
                    return
                self._refused_states = states
        raise ModelReplacedError(
            f"the model {model} was replaced while the daemon ran; put it back, or run `runed stop`: the next client starts a "
            "daemon that serves the present file"
        )

    # For subclasses

    def _files_of_model(self) -> list[Path]:
        """Return the files that decide what the model's vectors are."""
        return [self._command.model]

    async def _launch(self) -> EngineServer:
        """Start the server. A subclass may try again with another command."""
        return await self._start()

    async def _test(self, http: EngineInterface) -> SelfTest:
        """Check the vectors: of all test texts at the first start, else of one."""
        if self._self_test is None:
            return await check_engine(http, eos_id=None, limits=self._command.limits, long_tokens=0)
        await check_again(http, self._self_test.reference)
        return self._self_test

    def _last_words(self, output: OutputLog) -> str:
        """Return the part of the output that tells why a start failed, as a clause that can be appended to an error."""
        return output.last_words()

    def _explain(
        self,
        error: BackendFaultError | BackendUnavailableError,
        child: ChildProcess,  # noqa: ARG002 # its end tells more to a subclass
    ) -> BackendError:
        """Return the error that tells why a start failed. The process has ended."""
        return error

    def _check_home(self) -> None:
        """Refuse to work in a home that is not this process's any more."""
        if not self._holds_home():
            # Another daemon may serve what is at this path now. Two daemons there would end each other's engines for ever.
            raise BackendUnavailableError("the home of this daemon was removed or replaced, so it ends; connect again")

    async def _start(self) -> EngineServer:
        """Start the server once."""
        command, output = self._command, OutputLog(self._command.log)
        with self._as_unavailable():
            await run_in_thread(self._make_room)
            child = await ChildProcess.spawn(
                command.argv(),
                env=command.environment(),
                output=output,
                record=self._paths.engine_record,
                leftovers=[command.socket],
                holds_home=self._holds_home,
            )
        self._tried = True  # what failed before is no fault of the engine
        http = self._connect(command)
        server = EngineServer(child, http, command.socket)
        try:
            await self._wait_while_it_works(server)
        except BaseException as error:
            server.closing = True
            http.close()
            await child.kill()  # it has no state that a graceful end would save
            if isinstance(error, BackendFaultError | BackendUnavailableError):
                raise self._explain(error, child) from None
            raise
        return server

    @contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        """Turn an error of the file system into one that tells the user how to correct it."""
        name, executable = self._command.name, self._command.executable
        try:
            yield
        except ForeignPathError as error:
            raise BackendUnavailableError(f"{name} cannot be started: {error}") from None
        except OSError as error:
            path = error.filename or executable
            raise BackendUnavailableError(
                f"{name} cannot be started: {explain(error) if error.filename else f'{path}: {error.strerror}'}; "
                f"{self._remedy if str(path) == str(executable) else 'correct that'}, and try again"
            ) from None

    # Private

    def _make_room(self) -> None:
        """Make the directories, and remove an earlier server and its socket, since no server binds to an existing path."""
        socket = self._command.socket
        self._check_home()
        for directory in (self._paths.engine_record.parent, self._paths.logs, self._paths.cache):
            ensure_private_dir(directory)
        ensure_socket_dir(socket)
        reap_orphan(self._paths.engine_record)
        if socket.exists() and not socket.is_socket():
            raise ForeignPathError(f"{socket} is not a socket; move it away or set RUNED_HOME to another place")
        socket.unlink(missing_ok=True)

    async def _wait_while_it_works(self, server: EngineServer) -> None:
        child, timings = server.child, self._timings
        started = time.monotonic()
        look = min(timings.look, timings.start_stall / 8)
        stillness = Stillness(child, look=look)
        coming_up = asyncio.create_task(self._come_up(server))
        try:
            while True:
                await asyncio.wait({coming_up, child.exited}, timeout=look, return_when=asyncio.FIRST_COMPLETED)
                if coming_up.done():
                    break
                if child.exited.done():
                    raise self._failed_start(server, describe_exit(child.exited.result()))
                # After a signal, an engine that just computes its self-test would never answer, nor end.
                if server.listened and (fault := server.fault()):
                    raise self._failed_start(server, await _end_or(fault, server))
                patience = min(timings.hang + timings.probe if child.stopped else timings.start_stall, timings.start_stall)
                if stillness.look() > patience:
                    raise self._failed_start(server, f"made no progress for {patience:g} seconds")
                if time.monotonic() - started > timings.start_limit:
                    raise self._failed_start(server, f"was not ready after {timings.start_limit:g} seconds")
            await coming_up
        finally:
            coming_up.cancel()
            await asyncio.wait({coming_up})

    async def _come_up(self, server: EngineServer) -> None:
        """Wait until the server has loaded, and check its vectors."""
        started = time.monotonic()
        while not (self._command.socket.exists() and await server.http.healthy()):  # no event tells it
            server.listened = server.listened or server.accepts()
            # The pause grows with the elapsed time. A wake-up loses at most 5 ms, and a long load costs little processor time.
            await asyncio.sleep(min(max((time.monotonic() - started) / 20, 0.005), 0.25))
        server.listened = True
        try:
            self._self_test = await self._test(server.http)
        except ConnectionLostError:
            raise self._failed_start(server, await _end_or("broke off its first answer", server)) from None
        server.reference = self._self_test.reference

    def _failed_start(self, server: EngineServer, how: str) -> BackendUnavailableError:
        return BackendUnavailableError(f"{self._command.name} {how} while it started{self._last_words(server.child.output)}")


async def _end_or(fault: str, server: EngineServer) -> str:
    """Return the way in which a server ended, which tells more than a fault, or the fault of a living one."""
    return describe_exit(server.child.exited.result()) if await server.has_died() else fault


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; "" if it cannot be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and time of change of a file, or None if it is gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
