"""Watches a running server, and kills it if it cannot be reached or hangs; see `Timings`."""

from __future__ import annotations

import asyncio
import time

from runed.backends.engine.interface import ConnectionLostError
from runed.backends.engine.server import UNREACHABLE, EngineServer
from runed.backends.engine.stillness import Stillness
from runed.backends.engine.timings import Timings
from runed.errors import BackendFaultError

POISONED = "gave a wrong vector for the text of its self-test, too"
"""Fault of a server that gives wrong vectors for every text."""


class Watch:
    """The watch of one server.

    Args:
        server: The server, which is ready.
        timings: The limits of patience.
    """

    def __init__(self, server: EngineServer, timings: Timings) -> None:
        self._server = server
        self._timings = timings
        self._stillness = Stillness(server.child, look=timings.look)
        self._probe: asyncio.Task[None] | None = None
        self._answers = 0

    async def until_dead(self) -> None:
        """Wait until the server has died. Kill it if it cannot be reached, or if it hangs."""
        server = self._server
        try:
            while not (await asyncio.wait({server.child.exited}, timeout=self._timings.look))[0]:
                if server.closing or not (fault := self._judge()):
                    continue
                # A dying server closes its socket first. Its own end tells more, such as that the system killed it.
                if fault != UNREACHABLE or not await server.has_died():
                    await server.condemn(fault)
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.wait({self._probe})

    def _judge(self) -> str:
        """Return the fault for which the server must be killed now, or ""."""
        server, timings = self._server, self._timings
        stopped = server.child.stopped
        if fault := server.fault():
            return fault
        if self._probe is not None and self._probe.done():
            return self._end_probe(self._probe)
        quiet = self._quiet(stopped=stopped)
        server.doubt = ""
        if self._probe or quiet > timings.hang / 2:
            what = "is stopped by a signal" if stopped else "owes an answer and does nothing"
            server.doubt = f"{server.http.name} {what}; it is replaced soon, unless it goes on"
        if self._probe is not None:
            return self._hung if quiet >= timings.probe else ""
        if quiet >= timings.hang:
            self._probe = asyncio.create_task(server.check())
            self._stillness.restart()
        return ""

    def _quiet(self, *, stopped: bool) -> float:
        """Return the seconds for which the server has done nothing that it should do."""
        since = self._server.waiting_since
        if since is None and not stopped:
            self._stillness.restart()
            return 0.0
        answers, self._answers = self._answers, self._server.answers
        still = self._stillness.look(answering=answers != self._answers)
        return still if since is None or self._probe is not None else min(still, time.monotonic() - since)

    def _end_probe(self, probe: asyncio.Task[None]) -> str:
        self._probe = None
        self._stillness.restart()
        try:
            probe.result()
        except BackendFaultError:
            self._server.poisoned = True
            return POISONED
        except ConnectionLostError:
            pass  # the next look shows whether it died or can be reached
        self._server.doubt = ""
        return ""

    @property
    def _hung(self) -> str:
        patience = self._timings.hang + self._timings.probe
        return f"did not answer for {patience:g} seconds and did nothing"
