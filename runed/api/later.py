"""Parts that are made when they are first needed, since many daemons never need what they import."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A part that is made in a thread when it is first needed, and kept. For use in one event loop.

    Args:
        make: Makes the part.
        executor: The threads to use; None means those of the event loop.
    """

    def __init__(self, make: Callable[[], T], executor: Executor | None = None) -> None:
        self._make = make
        self._executor = executor
        self._made: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """Return the part. Callers that leave meanwhile do not stop its making."""
        if self._made is None:
            self._made = asyncio.get_running_loop().run_in_executor(self._executor, self._make)
        return await asyncio.shield(self._made)
