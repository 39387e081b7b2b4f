"""Kills processes of a cluster one after the other, while a job runs on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

import runed
from runed.errors import RunedError
from tests.cluster.conftest import Home
from tests.support import wait_until

TEXTS = 200
"""Texts that the first node embeds between two deaths."""

COUNT = 12_000
"""Texts of a job."""

PAUSE = 1 / 300
"""Seconds of waiting for each text until the last death. A fast machine would do the job while a daemon starts again."""

LONG_SECONDS = 1800
"""Most seconds of such a test."""

_SECONDS = 300.0
"""Most seconds that it may take for that on a busy machine."""


@contextlib.contextmanager
def deaths(home: Home, steps: Mapping[str, Callable[[], object]], slowly: Path) -> Iterator[list[str]]:
    """Kill processes by SIGKILL during the block. Yield the list of their names, which grows with each death.

    Args:
        home: The home of the node whose texts are counted.
        steps: The functions that return the process to kill, or kill by themselves and return what they killed.
        slowly: A file that is there until the last death.
    """
    slowly.touch()
    killed: list[str] = []
    over = threading.Event()

    def kill() -> None:
        for name, find in steps.items():
            before = _embedded(home)
            wait_until(lambda before=before: over.is_set() or _grown(before, _embedded(home)), timeout=_SECONDS)  # type: ignore[misc]
            if over.is_set():
                return
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                if isinstance(found := wait_until(find, timeout=_SECONDS), psutil.Process):
                    found.kill()
            killed.append(name)
        slowly.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def _embedded(home: Home) -> tuple[int, int]:
    """Return the pid of the daemon of a home, and the number of texts that it has embedded; zeros if none answers."""
    try:
        with runed.connect(home=home.path, spawn=False) as client:
            health = client.health(timeout=10)
    except RunedError:
        return 0, 0
    return health.pid, health.total_texts


def _grown(before: tuple[int, int], now: tuple[int, int]) -> bool:
    """Return whether the first node has embedded enough since the last death. A new daemon counts from 0."""
    return now[1] - (before[1] if now[0] == before[0] else 0) >= TEXTS
