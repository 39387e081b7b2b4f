"""One running engine: its process, its HTTP interface, and the requests that it has not answered yet."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runed.backends.engine.interface import ConnectionLostError, EngineInterface
from runed.backends.engine.process import ChildProcess
from runed.backends.engine.self_test import check_again
from runed.processes import describe_exit

_DEATH_NOTICE = 1.0
"""Seconds after the loss of a connection during which the process may still turn out to be dead. A dying process closes its
connections first. On a busy machine, hundreds of milliseconds may pass until its end shows."""

UNREACHABLE = "could not be reached any more by its socket"
"""Fault of a server whose socket is closed or gone."""

_ENDING = "was asked to end by a signal, and did not"
"""Fault of a server that is caught in the handler of the signal."""

_CRASHES = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""Signals that a process gets for its own faults. Other signals come from outside; SIGKILL also comes for want of memory."""


@dataclass(slots=True)
class EngineServer:
    """An engine that runs. The launcher makes it; the supervisor ends it.

    Attributes:
        child: Its process.
        http: Its interface.
        path: Its socket.
        listened: Whether it has taken a connection while it started.
        reference: The vector of the self-test's first text; the launcher sets it when the server is ready.
        closing: Whether it is being stopped on purpose. A lost connection is expected then.
        verdict: The reason why it was killed, or "".
        poisoned: Whether it was killed because its vectors were wrong.
        doubt: A sentence on its silence, or "".
        answers: The number of requests that it has answered.
    """

    child: ChildProcess
    http: EngineInterface
    path: Path
    listened: bool = False
    reference: bytes = b""
    closing: bool = False
    verdict: str = ""
    poisoned: bool = False
    doubt: str = ""
    answers: int = 0
    _asked: dict[object, float] = field(default_factory=dict)
    _abandoned: float | None = None
    _broke_off: bool = False

    @property
    def waiting_since(self) -> float | None:
        """The time of the oldest unanswered request, in seconds of the monotonic clock; None if there is none.

        The oldest request counts, since the server may count texts while its computing hangs. A request whose caller went away
        counts until another request is answered.
        """
        return min(filter(None, [*self._asked.values(), self._abandoned]), default=None)

    @property
    def owes(self) -> bool:
        """Whether somebody waits for an answer, or waited when the connection was lost."""
        return self._broke_off or self.waiting_since is not None

    @contextmanager
    def question(self) -> Iterator[None]:
        """Note a request at the start of the block, and its answer at the end."""
        question = object()
        self._asked[question] = since = time.monotonic()
        abandoned: float | None = None
        try:
            yield
            self.answers += 1
        except ConnectionLostError:
            self._broke_off = True
            raise
        except asyncio.CancelledError:
            abandoned = self._abandoned or since  # the caller went away; the server may be healthy
            raise
        finally:
            del self._asked[question]
            self._abandoned = abandoned

    def accepts(self) -> bool:
        """Return whether the socket takes connections. A full queue of connections is no refusal."""
        try:
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.setblocking(False)
                visitor.connect(str(self.path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # a full queue, or this process has no file descriptor left
            pass
        return True

    def fault(self) -> str:
        """Return the fault for which the server will not answer any more, or "".

        After a signal such as SIGTERM, a busy server waits for ever. Mostly it closes its listener first. But the handler needs
        the lock of the queue, and the main thread may hold this lock when the signal comes.
        """
        if self.child.stopped:  # its queue fills up, which looks like a refusal on macOS
            return ""
        if not self.accepts():
            return UNREACHABLE
        return _ENDING if self.child.is_ending else ""

    async def check(self) -> None:
        """Ask for the vector of a short text.

        Raises:
            BackendFaultError: It is not the vector that the server gave before.
            ConnectionLostError: The connection ended.
        """
        with self.question():
            await check_again(self.http, self.reference)

    async def has_died(self) -> bool:
        """Return whether the process is dead after its connection broke. Wait a moment for a death that does not show yet."""
        await asyncio.wait({self.child.exited}, timeout=_DEATH_NOTICE)
        return self.child.exited.done()

    async def condemn(self, fault: str) -> None:
        """Kill the server for a fault, which is told as the end of a sentence. Of several faults, the first one is told."""
        # While it dies of the first one, it cannot be reached either.
        self.verdict = self.verdict or f"{self.http.name} {fault}, so it was replaced"
        await self.child.kill()

    async def close(self, grace: float) -> None:
        """Stop the server, with `grace` seconds between SIGTERM and SIGKILL."""
        self.closing = True
        self.http.close()  # first, since the server obeys SIGTERM only when all connections are closed
        await self.child.terminate(grace)

    @property
    def crashed(self) -> bool:
        """Whether the process failed by itself. It must have ended."""
        code = self.child.exited.result()
        return self.poisoned or code > 0 or -code in _CRASHES

    @property
    def end(self) -> str:
        """The way in which the process ended. It must have ended."""
        code = self.child.exited.result()
        # A server that died before it could be killed tells a better reason itself.
        return self.verdict if self.verdict and code == -signal.SIGKILL else f"{self.http.name} {describe_exit(code)}"

    def obituary(self) -> str:
        """Return the way in which the process ended and the end of its output, for an error. The process must have ended."""
        return f"{self.end}{self.child.output.last_words()}"
