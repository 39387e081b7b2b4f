"""The seat of an engine on another machine, which takes no memory of this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runed.backends.base import BackendState, LocalBackend
from runed.daemon.seats import Seat, Seats


class FarSeat(Seat):
    """A backend that needs no room.

    Args:
        backend: The backend.
        seats: The room for the engines of this machine.
        name: The name of the model.
    """

    def __init__(self, backend: LocalBackend, seats: Seats, *, name: str) -> None:
        super().__init__(backend, seats, name=name, file_bytes=0)

    @property
    def state(self) -> BackendState:
        """See `Embedder.state`."""
        return self.engine_state

    async def stop(self) -> None:
        """See `Managed.stop`."""
        await self._backend.stop()

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self.last_used = asyncio.get_running_loop().time()
