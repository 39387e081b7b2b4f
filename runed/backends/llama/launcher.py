"""Brings one `llama-server` up: its command line, its socket, the wait until it has loaded, and its self-test."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runed.backends.base import BatchLimits
from runed.backends.llama.gguf import GGUFMetadata
from runed.backends.llama.http import MAX_CONNECTIONS, ConnectionLostError, Isolation, LlamaHTTP, SlotsError
from runed.backends.llama.process import ChildProcess, OutputLog, reap_orphan
from runed.backends.llama.profile import Profile
from runed.backends.llama.quirks import Quirks
from runed.backends.llama.self_test import CompanyError, check_engine
from runed.domain.model import ModelInfo
from runed.errors import BackendUnavailableError, ForeignPathError
from runed.files import run_in_thread
from runed.log import get_logger
from runed.paths import Paths, ensure_private_dir, ensure_socket_dir
from runed.processes import describe_exit
from runed.settings import engine_environment

_log = get_logger(__name__)

CONTEXT_STEP = 256
"""llama.cpp rounds a context up to a multiple of this (measured: `-c 300` takes texts of 511 tokens)."""

LAST_MICRO_BATCH = 60
"""The micro-batch of models with last-token pooling, whose texts may span several; each token of it costs two buffers of the
vocabulary's size (facts.md, section 1). A multiple of 4, as the kernels take 4 rows at once, and below 64: from 64 rows on,
llama.cpp's flash attention computes in tiles on a CPU, whose bounds depend on where in the context a text lies, and so would
its vector (measured on a random-weight Qwen3-0.6B in q6_K: cosine down to 0.9994; below 64 rows exactly 1)."""

_DEATH_NOTICE = 1.0
"""How long a death may take to be noticed after the connection broke, in seconds."""

_NO_REPACK_REMARK = (
    "llama-server is run with --no-repack, which is slower, because its fast kernels use an instruction "
    "that this processor or its hypervisor refuses (SIGILL)"
)

_ONE_SLOT_REMARK = (
    "texts are computed one by one, which is slower for many short ones, because this build of llama-server gives this model's "
    "vectors another value in company than alone"
)

_QUOTED_LINES = 3
_QUOTED_LINE_LENGTH = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How patient a backend is; all in seconds, except `max_failures`.

    Attributes:
        start_stall: A start without progress (processor time or log lines) for so long is given up.
        start_limit: A start that takes longer is given up, whatever it seems to do.
        term_grace: Between SIGTERM and SIGKILL.
        hang: A child that answers nothing for so long is watched; one that then uses no processor time for so long is asked
            something small; one that for as long again neither answers it nor works is hung, and is replaced.
        backoff: Before a child that died is replaced; doubled with each death in a row, and jittered.
        backoff_limit: The most that the doubling leads to.
        max_failures: So many deaths or failed starts in a row, without an answer in between, and it is given up.
        pause: After giving up, requests are refused for so long; the next one then tries again.
    """

    start_stall: float = 60.0
    start_limit: float = 1800.0
    term_grace: float = 5.0
    hang: float = 20.0
    backoff: float = 0.25
    backoff_limit: float = 10.0
    max_failures: int = 4
    pause: float = 15.0


@dataclass(slots=True)
class Server:
    """A `llama-server` that is ready.

    Attributes:
        child: Its process.
        http: Its interface.
        closing: Whether it is being stopped on purpose, so that a lost connection is no accident.
        verdict: Why it had to be ended, if it did.
    """

    child: ChildProcess
    http: LlamaHTTP
    closing: bool = False
    verdict: str = ""
    _asked: dict[object, float] = field(default_factory=dict)
    _abandoned: float | None = None

    @property
    def waiting_since(self) -> float | None:
        """Since when, on the monotonic clock, it has owed an answer, also to one who went away; None if it owes none.

        What counts is the oldest question: texts are counted beside the computing, also when that hangs.
        """
        return min(filter(None, [*self._asked.values(), self._abandoned]), default=None)

    @contextmanager
    def question(self) -> Iterator[None]:
        """Keep the account of questions and answers, around each."""
        question = object()
        self._asked[question] = since = time.monotonic()
        abandoned: float | None = None
        try:
            yield
        except asyncio.CancelledError:
            abandoned = self._abandoned or since  # who asked went away; that says nothing about the server
            raise
        finally:
            del self._asked[question]
            self._abandoned = abandoned

    async def close(self, grace: float) -> None:
        """Stop it: connections first, since it waits for those that are open before it obeys a SIGTERM."""
        self.closing = True
        await self.http.close()
        await self.child.terminate(grace)

    def obituary(self) -> str:
        """Say how it ended, with its last words."""
        code = self.child.exited.result()
        # One that died by itself before it could be killed has a better reason of its own.
        how = self.verdict if self.verdict and code == -signal.SIGKILL else f"llama-server {describe_exit(code)}"
        return f"{how}{_last_words(self.child.output)}"


class Launcher:
    """Starts `llama-server` for one model, as often as it is needed.

    Args:
        executable: The program.
        model: The GGUF.
        metadata: What the GGUF says.
        info: What is told about the model.
        context: The context to ask for, in tokens; a multiple of `CONTEXT_STEP`.
        profile: How many texts at once and by how many threads.
        quirks: What is known of the engine on this machine.
        paths: The home.
        timings: How long to wait for what.
    """

    def __init__(
        self,
        *,
        executable: Path,
        model: Path,
        metadata: GGUFMetadata,
        info: ModelInfo,
        context: int,
        profile: Profile,
        quirks: Quirks,
        paths: Paths,
        timings: Timings,
    ) -> None:
        self._executable = executable
        self._model = model
        self._metadata = metadata
        self._info = info
        self._context = context
        self._paths = paths
        self._timings = timings
        self._profile = profile
        self._quirks = quirks
        self._no_repack = quirks.no_repack()
        self._one_slot = quirks.one_slot()
        self._tested: str | None = None
        self._model_state = _file_state(model)

    @property
    def remark(self) -> str:
        """What is unusual about how the engine is run, or ""."""
        slow = self._one_slot and self._profile.slots > 1
        return "; ".join([*([_NO_REPACK_REMARK] if self._no_repack else []), *([_ONE_SLOT_REMARK] if slow else [])])

    @property
    def limits(self) -> BatchLimits:
        """What one micro-batch may hold; see `Embedder.limits`."""
        # A batch that the engine had to cut would put a text's tokens beside others than those it has alone.
        return BatchLimits(texts=self._slots, tokens=min(self._profile.batch_tokens, self._batch))

    @property
    def _slots(self) -> int:
        return 1 if self._one_slot else self._profile.slots

    @property
    def _batch(self) -> int:
        """The tokens that the engine computes at once."""
        # Mean and cls pooling need the whole text in one micro-batch.
        return LAST_MICRO_BATCH if self._info.pooling == "last" else self._info.max_tokens

    @property
    def _shares_context(self) -> bool:
        """Whether texts in several slots lie beside each other in one context."""
        return self._slots > 1 and self._info.pooling == "last"

    def command(self) -> list[str]:
        """Give the argv, as it is on this machine at this moment."""
        options: dict[str, object] = {
            "--model": self._model,
            "--host": self._paths.engine_socket,
            "--pooling": self._info.pooling,
            "--ctx-size": self._context,
            "--batch-size": self._batch,  # one larger than the micro-batch used to assert
            "--ubatch-size": self._batch,
            "--parallel": self._slots,
            "--threads": self._profile.threads,
            "--threads-batch": self._profile.threads,
            "--threads-http": MAX_CONNECTIONS + 2,  # for connections that we closed and it has not noticed yet
            "--cache-ram": 0,  # the default keeps up to 8 GiB of prompts that no embedding ever uses again
            "--fit": "off",
            "--log-colors": "off",
            "--verbosity": 2,  # warnings; more would be three lines a text
        }
        flags = ["--embeddings", "--no-ui", "--offline", *(["--no-repack"] if self._no_repack else [])]
        if self._shares_context:
            options["--slot-save-path"] = self._paths.engine_socket.parent  # nothing is saved; without it no slot can be erased
        if self._slots > 1:
            flags.append("--kv-unified")  # one text may use the whole context, instead of each slot its part
        return [str(self._executable), *flags, *(str(part) for option in options.items() for part in option)]

    async def launch(self) -> Server:
        """Start the server and wait until it is ready.

        Returns:
            The server; the caller closes it.

        Raises:
            BackendUnavailableError: It did not come up.
            BackendFaultError: It came up, but computes something wrong.
        """
        # Under the identity that clients keep beside their vectors, a file that took its place would serve others unnoticed.
        if _file_state(self._model) != self._model_state:
            raise BackendUnavailableError(
                f"the model {self._model} was replaced or removed while the daemon ran; run `runed stop`: "
                "the next client starts a daemon that serves what is there then"
            )
        self._no_repack = self._quirks.no_repack()
        self._one_slot = self._quirks.one_slot()
        try:
            return await self._launch_repacked()
        except (CompanyError, SlotsError) as error:
            if self._slots == 1:
                raise
            _log.warning("vectors depend on company; trying with one slot", reason=error.message)
        self._one_slot = True
        server = await self._launch_repacked()
        self._quirks.remember_one_slot()
        return server

    async def _launch_repacked(self) -> Server:
        """Start the server, without its repacked kernels if it dies of them."""
        try:
            return await self._launch_once()
        except _IllegalInstructionError as error:
            if self._no_repack:
                raise
            _log.warning("llama-server died of an illegal instruction; trying without repacked kernels", output=error.output)
        self._no_repack = True
        try:
            server = await self._launch_once()
        except BaseException as error:
            self._no_repack = isinstance(error, CompanyError | SlotsError)
            raise
        self._quirks.remember_no_repack()
        return server

    async def _launch_once(self) -> Server:
        output = OutputLog(self._paths.engine_log)
        with self._as_unavailable():
            await run_in_thread(self._make_room)
            child = await ChildProcess.spawn(
                self.command(),
                env=engine_environment(),
                output=output,
                record=self._paths.engine_record,
                leftovers=[self._paths.engine_socket],
            )
        http = LlamaHTTP(
            self._paths.engine_socket,
            dim=self._info.dim,
            max_tokens=self._info.max_tokens,
            isolation=Isolation(self._slots, self._batch) if self._shares_context else None,
        )
        server = Server(child, http)
        try:
            await self._wait_while_it_makes_progress(server)
        except BaseException as error:
            server.closing = True
            await server.http.close()
            await child.kill()  # it holds nothing that a graceful end would save
            if isinstance(error, BackendUnavailableError) and child.exited.result() == -signal.SIGILL:
                raise _IllegalInstructionError(output) from None
            raise
        return server

    def _make_room(self) -> None:
        """Clear away what an earlier server left; the new one refuses to bind where a socket is."""
        socket = self._paths.engine_socket
        for directory in (self._paths.engine_record.parent, self._paths.logs, self._paths.cache):
            ensure_private_dir(directory)
        ensure_socket_dir(socket)
        reap_orphan(self._paths.engine_record)
        if socket.exists() and not socket.is_socket():
            raise ForeignPathError(f"{socket} is not a socket; move it away or set RUNED_HOME to another place")
        socket.unlink(missing_ok=True)

    async def _wait_while_it_makes_progress(self, server: Server) -> None:
        child, timings = server.child, self._timings
        started = progressed = time.monotonic()
        progress = (0.0, 0)
        coming_up = asyncio.create_task(self._come_up(server))
        try:
            while True:
                await asyncio.wait(
                    {coming_up, child.exited}, timeout=timings.start_stall / 8, return_when=asyncio.FIRST_COMPLETED
                )
                if coming_up.done():
                    break
                if child.exited.done():
                    raise self._failed_start(server, describe_exit(child.exited.result()))
                now, current = time.monotonic(), child.progress()
                if current != progress:
                    progress, progressed = current, now
                if now - progressed > timings.start_stall:
                    raise self._failed_start(server, f"made no progress for {timings.start_stall:g} seconds")
                if now - started > timings.start_limit:
                    raise self._failed_start(server, f"was not ready after {timings.start_limit:g} seconds")
            await coming_up
        finally:
            coming_up.cancel()
            await asyncio.wait({coming_up})

    def _failed_start(self, server: Server, how: str) -> BackendUnavailableError:
        output = server.child.output
        # llama.cpp's words for an option that this build does not have, of a program that the user chose.
        too_old = any("invalid argument" in line or "unknown argument" in line for line in output.tail(_QUOTED_LINES))
        remedy = "; it lacks an option that runed needs: use a newer one, or unset RUNED_LLAMA_SERVER" if too_old else ""
        return BackendUnavailableError(f"llama-server {how} while it started{_last_words(output)}{remedy}")

    async def _come_up(self, server: Server) -> None:
        """Wait until the server has loaded, and check what it computes, once for each version of the program."""
        started = time.monotonic()
        while not (self._paths.engine_socket.exists() and await server.http.healthy()):  # noqa: ASYNC110 # no event tells it
            # A twentieth of the time gone: this costs a wake-up no more than 5 ms, and a long load no processor.
            await asyncio.sleep(min(max((time.monotonic() - started) / 20, 0.005), 0.25))
        tested = f"{self._quirks.engine()} {self._slots}"
        if tested == self._tested:
            return
        eos_id = self._metadata.eos_id if self._info.pooling == "last" else None
        try:
            await check_engine(server.http, eos_id=eos_id, limits=self.limits)
        except ConnectionLostError:
            await asyncio.wait({server.child.exited}, timeout=_DEATH_NOTICE)
            gone = server.child.exited.done()
            how = describe_exit(server.child.exited.result()) if gone else "broke off its first answer"
            raise self._failed_start(server, how) from None
        self._tested = tested

    @contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        """Say of a file that cannot be used that the engine cannot be started, and what to do."""
        try:
            yield
        except ForeignPathError as error:
            raise BackendUnavailableError(f"llama-server cannot be started: {error}") from None
        except OSError as error:
            path = error.filename or self._executable
            remedy = "run `runed install`, or correct RUNED_LLAMA_SERVER if you set it"
            raise BackendUnavailableError(
                f"llama-server cannot be started: {path}: {error.strerror}; "
                f"{remedy if str(path) == str(self._executable) else 'correct that'}, and try again"
            ) from None


class _IllegalInstructionError(BackendUnavailableError):
    """The server was ended by SIGILL while it started."""

    def __init__(self, output: OutputLog) -> None:
        self.output = output.tail()
        super().__init__(
            "llama-server was ended by SIGILL while it started: it was built for another processor than this one; "
            f"set RUNED_LLAMA_SERVER to one built for this machine{_last_words(output)}"
        )


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Give what changes when a file is replaced or written to, or None if it is gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def _last_words(output: OutputLog) -> str:
    """Give the end of what a server wrote, to be appended to an error."""
    lines = [line[:_QUOTED_LINE_LENGTH] for line in output.tail(_QUOTED_LINES)]
    return f"; its last words: {' / '.join(lines)}" if lines else "; it said nothing"
