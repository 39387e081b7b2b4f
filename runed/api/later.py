"""Parts of the API that are made when they are first needed, since most daemons never need what they import."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A part that is made in a thread when it is first needed, and kept. For use in one event loop.

    Args:
        make: Makes the part.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the part. Callers that leave meanwhile do not stop its making."""
        if self._made is None:
            self._made = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._made)
