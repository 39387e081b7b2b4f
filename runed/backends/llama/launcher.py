"""Starts `llama-server` in the way that this machine needs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from runed.backends.engine.interface import EngineInterface
from runed.backends.engine.launcher import Launcher
from runed.backends.engine.process import ChildProcess, OutputLog
from runed.backends.engine.self_test import MIN_COSINE, CompanyError, SelfTest, check_again, check_engine
from runed.backends.engine.server import EngineServer
from runed.backends.engine.timings import Timings
from runed.backends.llama.command import LlamaCommand
from runed.backends.llama.http import SlotsError
from runed.backends.llama.passes import free_memory
from runed.backends.llama.quirks import Quirks
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError
from runed.log import get_logger
from runed.paths import Paths

_EXPLAINED_LINES = 50
"""Last lines of the output among which the reason is looked for why a device is not there."""

_log = get_logger(__name__)


class LlamaLauncher(Launcher[LlamaCommand]):
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

    _remedy: ClassVar[str] = "run `runed install`, or correct RUNED_LLAMA_SERVER if you set it"

    def __init__(
        self,
        command: LlamaCommand,
        *,
        connect: Callable[[LlamaCommand], EngineInterface],
        eos_id: int | None,
        quirks: Quirks,
        paths: Paths,
        holds_home: Callable[[], bool],
        timings: Timings,
    ) -> None:
        super().__init__(command, connect=connect, paths=paths, holds_home=holds_home, timings=timings)
        self._eos_id = eos_id
        self._quirks = quirks
        self._tested: str | None = None
        self._heed_quirks()

    async def _launch(self) -> EngineServer:
        """Start the server. If its vectors depend on the other texts of a batch, start it once more with one slot."""
        self._heed_quirks()
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

    async def _launch_repacked(self) -> EngineServer:
        """Start the server. If it dies of its repacked kernels, start it once more without them."""
        try:
            return await self._start()
        except _IllegalInstructionError as error:
            if self._command.no_repack:
                raise
            _log.warning("llama-server died of an illegal instruction; trying without repacked kernels", output=error.output)
        self._command = replace(self._command, no_repack=True)
        try:
            server = await self._start()
        except BaseException as error:
            self._command = replace(self._command, no_repack=isinstance(error, CompanyError | SlotsError))
            raise
        self._quirks.remember_no_repack()
        return server

    async def _test(self, http: EngineInterface) -> SelfTest:
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

    async def _holds(self, known: SelfTest, http: EngineInterface) -> bool:
        """Return whether an engine still computes what an earlier daemon saw."""
        try:
            await check_again(http, known.reference, least=MIN_COSINE)
        except BackendFaultError:
            return False
        return True

    async def _check(self, http: EngineInterface) -> SelfTest:
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

    def _last_words(self, output: OutputLog) -> str:
        # After this line, llama.cpp explains its options at length.
        if gone := next((line for line in output.tail(_EXPLAINED_LINES) if "invalid device" in line), ""):
            return f": {gone.strip()}"
        words = output.last_words()
        # llama.cpp's error for an option that this build lacks. The user may have chosen an old program.
        too_old = any(fault in words for fault in ("invalid argument", "unknown argument"))
        remedy = "; it lacks an option that runed needs: use a newer one, or unset RUNED_LLAMA_SERVER" if too_old else ""
        return words + remedy

    def _explain(self, error: BackendFaultError | BackendUnavailableError, child: ChildProcess) -> BackendError:
        if isinstance(error, BackendUnavailableError) and child.exited.result() == -signal.SIGILL:
            return _IllegalInstructionError(child.output)
        return error.retold(error.message + _doubt(self._command.executable, self._paths.bin, error.message))


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
