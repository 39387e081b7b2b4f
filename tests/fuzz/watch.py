"""Another client of an attacked daemon, in a process of its own. It tells how long it waited."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

INTERVAL = 0.01
"""Seconds between two calls."""


@dataclass
class Waits:
    """What the other client noticed.

    Attributes:
        calls: Its calls.
        longest: The longest wait for an answer, in seconds, less the delay of a sleep of its own just before or after.
        failures: Calls without an answer, or with another answer than the first.
    """

    calls: int = 0
    longest: float = 0.0
    failures: int = 0


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("runed", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def other_client(path: Path) -> Iterator[Waits]:
    """Call a daemon all the time during the block. The result is filled at its end."""
    waits = Waits()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_call_on, args=(path, theirs), daemon=True)
    process.start()
    try:
        ours.recv()
        yield waits
        ours.send(None)
        result: Waits = ours.recv()
        waits.calls, waits.longest, waits.failures = result.calls, result.longest, result.failures
    finally:
        process.kill()
        process.join()
        ours.close()
        theirs.close()


def _call_on(path: Path, pipe: Connection) -> None:
    waits, over = Waits(), threading.Event()
    first: dict[str, object] = {}
    connection = _Unix(path)
    pipe.send(None)

    def wait_for_the_end() -> None:
        pipe.recv()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    delay = 0.0
    while not over.is_set():
        name, body = (("Health", b"{}"), ("Embed", b'{"text": "hello world"}'))[waits.calls % 2]
        started = time.monotonic()
        try:
            connection.request("POST", f"/runed.v1.RunedService/{name}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            vector = json.loads(data).get("vector")
            right = answer.status == http.client.OK and first.setdefault(name, vector) == vector
        except (OSError, ValueError, http.client.HTTPException):
            connection.close()
            right = False
        slept = time.monotonic()
        wait = slept - started
        time.sleep(INTERVAL)
        before, delay = delay, time.monotonic() - slept - INTERVAL
        waits.longest = max(waits.longest, wait - 2 * max(before, delay))
        waits.failures += not right
        waits.calls += 1
    pipe.send(waits)
