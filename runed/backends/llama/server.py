"""One running `llama-server`: its process, its HTTP interface, and the requests that it has not answered yet."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from runed.backends.llama.http import LlamaHTTP
from runed.backends.llama.process import ChildProcess
from runed.processes import describe_exit

_DEATH_NOTICE = 1.0
"""Seconds after the loss of a connection during which the process may still turn out to be dead. A dying process closes its
connections first. On a busy machine, hundreds of milliseconds may pass until its end shows."""


@dataclass(slots=True)
class LlamaServer:
    """A `llama-server` that runs. The launcher makes it; the supervisor ends it.

    Attributes:
        child: Its process.
        http: Its interface.
        closing: Whether it is being stopped on purpose. A lost connection is expected then.
        verdict: The reason why it was killed, or "".
    """

    child: ChildProcess
    http: LlamaHTTP
    closing: bool = False
    verdict: str = ""
    _asked: dict[object, float] = field(default_factory=dict)
    _abandoned: float | None = None

    @property
    def waiting_since(self) -> float | None:
        """The time of the oldest unanswered request, in seconds of the monotonic clock; None if there is none.

        The oldest request counts, since the server may count texts while its computing hangs. A request whose caller went away
        counts until another request is answered.
        """
        return min(filter(None, [*self._asked.values(), self._abandoned]), default=None)

    @contextmanager
    def question(self) -> Iterator[None]:
        """Note a request at the start of the block, and its answer at the end."""
        question = object()
        self._asked[question] = since = time.monotonic()
        abandoned: float | None = None
        try:
            yield
        except asyncio.CancelledError:
            abandoned = self._abandoned or since  # the caller went away; the server may be healthy
            raise
        finally:
            del self._asked[question]
            self._abandoned = abandoned

    async def has_died(self) -> bool:
        """Return whether the process is dead after its connection broke. Wait a moment for a death that does not show yet."""
        await asyncio.wait({self.child.exited}, timeout=_DEATH_NOTICE)
        return self.child.exited.done()

    async def close(self, grace: float) -> None:
        """Stop the server, with `grace` seconds between SIGTERM and SIGKILL."""
        self.closing = True
        await self.http.close()  # first, since the server obeys SIGTERM only when all connections are closed
        await self.child.terminate(grace)

    def obituary(self) -> str:
        """Return the way in which the process ended and the end of its output, for an error. The process must have ended."""
        code = self.child.exited.result()
        # A server that died before it could be killed tells a better reason itself.
        how = self.verdict if self.verdict and code == -signal.SIGKILL else f"llama-server {describe_exit(code)}"
        return f"{how}{self.child.output.last_words()}"
