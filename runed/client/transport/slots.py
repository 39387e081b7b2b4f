"""The bound of a client's connections. Further calls wait for one of them, in the order of their coming."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

MAX_CONNECTIONS = 64
"""Most connections of a client for single calls, and again for streams. A daemon computes one micro-batch at a time, so more
would make nothing faster, and many clients of a machine share the descriptors of the daemon."""


class Slots:
    """The connections of a blocking client."""

    def __init__(self) -> None:
        self._renew()

    def take(self, timeout: float | None) -> Callable[[], None]:
        """Wait until one more connection may be open.

        Args:
            timeout: Most seconds to wait; None means no limit.

        Returns:
            A function to call once when the connection is not used any more.

        Raises:
            TimeoutError: The time was over first.
        """
        if self._pid != os.getpid():  # the threads of the parent, which would give their slots back, are not in this process
            self._renew()
        free = self._free
        if not free.acquire(timeout=timeout):
            raise TimeoutError
        return free.release

    def __reduce__(self) -> tuple[type[Slots], tuple[()]]:
        """Pickle as slots of another process, which are all free."""
        return Slots, ()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._free = threading.Semaphore(MAX_CONNECTIONS)
