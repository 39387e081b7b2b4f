"""Starts one `llama-server`: it frees the socket, starts the process, waits for the model, and runs the self-test."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runed.backends.llama.command import EngineCommand
from runed.backends.llama.http import ConnectionLostError, LlamaHTTP, SlotsError
from runed.backends.llama.passes import free_memory
from runed.backends.llama.process import ChildProcess, OutputLog, reap_orphan
from runed.backends.llama.quirks import Quirks
from runed.backends.llama.self_test import MIN_COSINE, CompanyError, SelfTest, check_again, check_engine
from runed.backends.llama.server import LlamaServer
from runed.backends.llama.stillness import Stillness
from runed.backends.llama.timings import Timings
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError, ForeignPathError
from runed.files import run_in_thread
from runed.log import get_logger
from runed.os_errors import explain
from runed.paths import Paths, ensure_private_dir, ensure_socket_dir
from runed.processes import describe_exit
from runed.settings import engine_environment

_EXPLAINED_LINES = 50
"""Last lines of the output among which the reason is looked for why a device is not there."""

_log = get_logger(__name__)


class DeviceError(BackendUnavailableError):
    """The engine died while it started on a device, or its vectors are wrong there. Elsewhere it may be sound."""


class ModelReplacedError(BackendUnavailableError):
    """The file of the model is another one than at the start of the daemon, or gone. No other try can help."""


class Launcher:
    """Starts `llama-server` for one model, as often as it is needed.

    Args:
        command: The command without regard to the quirks of the engine.
        connect: Makes the interface of a server that a command starts.
        eos_id: The token that each text must end with, or None.
        quirks: The quirks of the engine on this machine.
        paths: The home.
        holds_home: Returns whether the home is still this process's.
        timings: Time limits for the engine.
    """

    def __init__(
        self,
        command: EngineCommand,
        *,
        connect: Callable[[EngineCommand], LlamaHTTP],
        eos_id: int | None,
        quirks: Quirks,
        paths: Paths,
        holds_home: Callable[[], bool],
        timings: Timings,
    ) -> None:
        self._command = command
        self._connect = connect
        self._eos_id = eos_id
        self._quirks = quirks
        self._paths = paths
        self._timings = timings
        self._tested: str | None = None
        self._holds_home = holds_home
        self._spawned = False
        self._self_test: SelfTest | None = None
        self._model_state = _file_state(command.model)
        self._heed_quirks()

    @property
    def command(self) -> EngineCommand:
        """The command of the last start, or of the next one if there was none."""
        return self._command

    async def launch(self) -> LlamaServer:
        """Start the server and wait until it is ready.

        Returns:
            The server; the caller closes it.

        Raises:
            ModelReplacedError: The file of the model is not that of the identity.
            DeviceError: It did not come up on its device, or its vectors are wrong there.
            BackendUnavailableError: It did not come up.
            BackendFaultError: It came up, but its vectors are wrong.
        """
        # Clients keep the model's identity beside their vectors. Another file at this path would serve other vectors unnoticed.
        if _file_state(self._command.model) != self._model_state:
            raise ModelReplacedError(
                f"the model {self._command.model} was replaced or removed while the daemon ran; run `runed stop`: "
                "the next client starts a daemon that serves the present file"
            )
        self._heed_quirks()
        self._spawned = False
        try:
            return await self._launch_independent()
        except BackendError as error:
            if self._command.device.is_cpu or not self._spawned:
                raise
            raise DeviceError(error.message) from None

    @property
    def company_cosine(self) -> float:
        """See `BackendState.company_cosine`."""
        return self._self_test.company_cosine if self._self_test else 0.0

    async def _launch_independent(self) -> LlamaServer:
        """Start the server. If its vectors depend on the other texts of a batch, start it once more with one slot."""
        try:
            return await self._launch_repacked()
        except (CompanyError, SlotsError) as error:
            if self._command.slots == 1:
                raise
            _log.warning("vectors depend on company; trying with one slot", reason=error.message)
        self._command = replace(self._command, one_slot=True)
        server = await self._launch_repacked()
        self._quirks.remember_one_slot()
        return server

    def _heed_quirks(self) -> None:
        command = replace(self._command, no_repack=self._quirks.no_repack(), one_slot=self._quirks.one_slot())
        self._command = command.within(free_memory())

    async def _launch_repacked(self) -> LlamaServer:
        """Start the server. If it dies of its repacked kernels, start it once more without them."""
        try:
            return await self._launch_once()
        except _IllegalInstructionError as error:
            if self._command.no_repack:
                raise
            _log.warning("llama-server died of an illegal instruction; trying without repacked kernels", output=error.output)
        self._command = replace(self._command, no_repack=True)
        try:
            server = await self._launch_once()
        except BaseException as error:
            self._command = replace(self._command, no_repack=isinstance(error, CompanyError | SlotsError))
            raise
        self._quirks.remember_no_repack()
        return server

    async def _launch_once(self) -> LlamaServer:
        command, output = self._command, OutputLog(self._paths.engine_log)
        with self._as_unavailable():
            await run_in_thread(self._make_room)
            child = await ChildProcess.spawn(
                command.argv(),
                env=engine_environment(),
                output=output,
                record=self._paths.engine_record,
                leftovers=[command.socket],
                holds_home=self._holds_home,
            )
        self._spawned = True
        http = self._connect(command)
        server = LlamaServer(child, http, command.socket)
        try:
            await self._wait_while_it_works(server)
        except BaseException as error:
            server.closing = True
            http.close()
            await child.kill()  # it has no state that a graceful end would save
            if isinstance(error, BackendUnavailableError) and child.exited.result() == -signal.SIGILL:
                raise _IllegalInstructionError(output) from None
            if isinstance(error, BackendFaultError | BackendUnavailableError):
                raise error.retold(error.message + _doubt(command.executable, self._paths.bin, error.message)) from None
            raise
        return server

    def _make_room(self) -> None:
        """Make the directories, and remove an earlier server and its socket, since no server binds to an existing path."""
        socket = self._command.socket
        if not self._holds_home():
            # Another daemon may serve what is at this path now. Two daemons there would end each other's engines for ever.
            raise BackendUnavailableError("the home of this daemon was removed or replaced, so it ends; connect again")
        for directory in (self._paths.engine_record.parent, self._paths.logs, self._paths.cache):
            ensure_private_dir(directory)
        ensure_socket_dir(socket)
        reap_orphan(self._paths.engine_record)
        if socket.exists() and not socket.is_socket():
            raise ForeignPathError(f"{socket} is not a socket; move it away or set RUNED_HOME to another place")
        socket.unlink(missing_ok=True)

    async def _wait_while_it_works(self, server: LlamaServer) -> None:
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
                    raise _failed_start(server, describe_exit(child.exited.result()))
                # After a signal, an engine that just computes its self-test would never answer, nor end.
                if server.listened and (fault := server.fault()):
                    raise _failed_start(server, await _end_or(fault, server))
                patience = min(timings.hang + timings.probe if child.stopped else timings.start_stall, timings.start_stall)
                if stillness.look() > patience:
                    raise _failed_start(server, f"made no progress for {patience:g} seconds")
                if time.monotonic() - started > timings.start_limit:
                    raise _failed_start(server, f"was not ready after {timings.start_limit:g} seconds")
            await coming_up
        finally:
            coming_up.cancel()
            await asyncio.wait({coming_up})

    async def _come_up(self, server: LlamaServer) -> None:
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
            raise _failed_start(server, await _end_or("broke off its first answer", server)) from None
        server.reference = self._self_test.reference

    async def _test(self, http: LlamaHTTP) -> SelfTest:
        """Check the vectors: of all test texts for a new program, else of one."""
        command = self._command
        how = f"{command.slots} {command.limits.tokens} {command.pass_tokens} {command.profile.threads} {command.no_repack}"
        tested = f"{self._quirks.engine()} {how}"
        if self._self_test and tested == self._tested:
            await check_again(http, self._self_test.reference)
            return self._self_test
        # On a device, another driver may compute in another way.
        known = self._quirks.self_test(how) if command.device.is_cpu else None
        if known is None or not await self._holds(known, http):
            known = await self._check(http)
            if command.device.is_cpu:
                self._quirks.remember_self_test(how, known)
        self._tested = tested
        return known

    async def _holds(self, known: SelfTest, http: LlamaHTTP) -> bool:
        """Return whether an engine still computes what an earlier daemon saw."""
        try:
            await check_again(http, known.reference, least=MIN_COSINE)
        except BackendFaultError:
            return False
        return True

    async def _check(self, http: LlamaHTTP) -> SelfTest:
        """Run the self-test. Its long text takes seconds, so it is computed once for a build, a model and a size of passes."""
        command = self._command
        # On a device, another driver may compute passes in another way.
        known = command.device.is_cpu and self._quirks.has_sound_passes(command.pass_tokens)
        result = await check_engine(
            http, eos_id=self._eos_id, limits=command.limits, long_tokens=0 if known else command.long_tokens
        )
        if not known and command.isolation:
            self._quirks.remember_sound_passes(command.pass_tokens)
        return result

    @contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        """Turn an error of the file system into one that tells the user how to correct it."""
        try:
            yield
        except ForeignPathError as error:
            raise BackendUnavailableError(f"llama-server cannot be started: {error}") from None
        except OSError as error:
            executable = self._command.executable
            path = error.filename or executable
            remedy = "run `runed install`, or correct RUNED_LLAMA_SERVER if you set it"
            raise BackendUnavailableError(
                f"llama-server cannot be started: {explain(error) if error.filename else f'{path}: {error.strerror}'}; "
                f"{remedy if str(path) == str(executable) else 'correct that'}, and try again"
            ) from None


class _IllegalInstructionError(BackendUnavailableError):
    """The server was ended by SIGILL while it started."""

    def __init__(self, output: OutputLog) -> None:
        self.output = output.tail(20)
        super().__init__(
            "llama-server was ended by SIGILL while it started: it was built for another processor than this one; "
            f"set RUNED_LLAMA_SERVER to one built for this machine{output.last_words()}"
        )


def _doubt(program: Path, installed: Path, message: str) -> str:
    """Return a clause that names the setting of an engine of the user's own; "" for one that runed installed."""
    # A program that tells of `load_model` is a llama-server, and the model is at fault.
    told = "RUNED_LLAMA_SERVER" in message or "load_model" in message
    if told or program.is_relative_to(installed):
        return ""
    return (
        f"; if {program} is not the llama-server that you want, correct RUNED_LLAMA_SERVER (llama_server in config.json), "
        "or unset it to have an engine installed, and run `runed stop`"
    )


async def _end_or(fault: str, server: LlamaServer) -> str:
    """Return the way in which a server ended, which tells more than a fault, or the fault of a living one."""
    return describe_exit(server.child.exited.result()) if await server.has_died() else fault


def _failed_start(server: LlamaServer, how: str) -> BackendUnavailableError:
    output = server.child.output
    # After this line, llama.cpp explains its options at length.
    if gone := next((line for line in output.tail(_EXPLAINED_LINES) if "invalid device" in line), ""):
        return BackendUnavailableError(f"llama-server {how} while it started: {gone.strip()}")
    # llama.cpp's error for an option that this build lacks. The user may have chosen an old program.
    too_old = any(words in output.last_words() for words in ("invalid argument", "unknown argument"))
    remedy = "; it lacks an option that runed needs: use a newer one, or unset RUNED_LLAMA_SERVER" if too_old else ""
    return BackendUnavailableError(f"llama-server {how} while it started{output.last_words()}{remedy}")


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and time of change of a file, or None if it is gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
