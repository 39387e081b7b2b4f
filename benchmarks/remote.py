"""An engine on another machine, which is a `llama-server` over TCP with a key: asked directly, and through the daemon."""

from __future__ import annotations

import http.client
import secrets
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import runed
from benchmarks.lab import Daemon, Lab, say
from benchmarks.raw import RawClient, RawServer
from benchmarks.results import Row, median_ms

_WARM_UP = 20

_THREADS = 4
"""Requests at once, as the daemon makes them by default."""

_BATCH = 32
"""Texts of a request, as the daemon makes them by default."""

_SLICES = 5
"""Slices of the throughput of each side. They take turns, so that a drift of the machine's speed hits both."""

_SLOTS = 4
"""Slots of the server."""


class TcpClient(RawClient):
    """A client of a raw server with a key on a loopback port.

    Args:
        port: The port.
        key: The key.
    """

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


class TcpServer(RawServer):
    """A raw server with a key on a loopback port.

    Args:
        argv: The command line of the daemon's engine.
        key: The key.
    """

    def __init__(self, argv: Sequence[str], key: str) -> None:
        super().__init__(argv, Path("127.0.0.1"), slots=_SLOTS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.key = key
        self.argv += ["--port", str(self.port), "--api-key", key]

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> RawClient:
        """Return a new client, which the caller closes."""
        return TcpClient(self.port, self.key)


def measure_remote(lab: Lab) -> list[Row]:
    """Measure the daemon against the engine itself."""
    with ExitStack() as stack:
        key = secrets.token_hex()
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "key"
        file.touch(0o600)
        file.write_text(key)
        server = stack.enter_context(TcpServer(lab.argv, key))
        daemon = stack.enter_context(Daemon(lab.model, RUNED_BACKEND=server.url, RUNED_BACKEND_KEY_FILE=str(file)))
        rows = [_singles(lab, daemon, server), _throughput(lab, daemon, server)]
        return [*rows, _cached(lab, daemon, server)]


def _singles(lab: Lab, daemon: Daemon, server: TcpServer) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    with daemon.connect() as client, server.connect() as raw:
        for text in lab.fresh_texts(lab.effort.single_calls + _WARM_UP):
            ours.append(_time(client.embed, text))
            theirs.append(_time(raw.embed, text))
    one, other = median_ms(ours[_WARM_UP:]), median_ms(theirs[_WARM_UP:])
    return Row(
        "an engine over TCP, one short text, p50",
        f"{one:.2f} ms",
        f"{other:.2f} ms",
        f"{one - other:+.2f} ms",
        "at most 2 ms over raw",
        one - other <= 2,
    )


def _throughput(lab: Lab, daemon: Daemon, server: TcpServer) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    texts = max(_THREADS * _BATCH * 2, lab.effort.single_calls * 4)
    for _ in range(_SLICES):
        ours.append(_rate(daemon.connect, lab.fresh_texts(texts)))
        theirs.append(_rate(server.connect, lab.fresh_texts(texts)))
    one, other = statistics.median(ours), statistics.median(theirs)
    say(f"  remote: {', '.join(f'{rate:.0f}' for rate in ours)} against {', '.join(f'{rate:.0f}' for rate in theirs)}")
    return Row(
        f"an engine over TCP, {_THREADS} clients with batches of {_BATCH}",
        f"{one:.1f} texts/s",
        f"{other:.1f} texts/s",
        f"x {one / other:.3f}",
        "at least 0.95 of raw",
        one / other >= 0.95,
    )


def _cached(lab: Lab, daemon: Daemon, server: TcpServer) -> Row:
    with daemon.connect() as client:
        texts = lab.fresh_texts(10)
        client.embed_batch(texts)
        server.signal(signal.SIGSTOP)
        try:
            seconds = [_time(client.embed, text) for text in texts * (lab.effort.single_calls // len(texts))]
        finally:
            server.signal(signal.SIGCONT)
    return Row(
        "a cached text of an engine over TCP that does not answer, p50",
        f"{median_ms(seconds):.2f} ms",
        "-",
        "-",
        "at most 1.5 ms",
        median_ms(seconds) <= 1.5,
    )


def _rate(connect: Callable[[], AbstractContextManager[RawClient | runed.Client]], texts: Sequence[str]) -> float:
    """Return the texts per second of some clients that send batches."""
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]

    def send(number: int) -> None:
        with connect() as client:
            for batch in batches[number::_THREADS]:
                client.embed_batch(batch)

    began = time.perf_counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(send, range(_THREADS)))
    return len(texts) / (time.perf_counter() - began)


def _time(embed: Callable[[str], object], text: str) -> float:
    began = time.perf_counter()
    embed(text)
    return time.perf_counter() - began
