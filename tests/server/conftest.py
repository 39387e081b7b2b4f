"""Fixtures that run a server: ours in this process, or ours and stock Hypercorn in separate processes."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from runed.server import Server
from runed.server.stream import Application
from tests.server.app import Servicer, build_app
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]

Serve = Callable[..., AbstractAsyncContextManager[Server]]
Run = Callable[[str], Popen[bytes]]


@pytest.fixture
def path(home: Path) -> Path:
    """The path of the server's socket."""
    return home / "s"


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def sock(path: Path) -> Iterator[socket.socket]:
    """A listening socket, bound as the daemon does it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen()
        yield sock


@pytest.fixture
def serve(sock: socket.socket) -> Serve:
    """Start `Server(app, ..., **settings)` in this process. At the end, check that it has released everything."""

    @asynccontextmanager
    async def run(app: Application | Servicer, **settings: float) -> AsyncIterator[Server]:
        before = asyncio.all_tasks()
        server = Server(build_app(app) if isinstance(app, Servicer) else app, sock, **settings)  # type: ignore[arg-type] # both are apps
        await server.start()
        try:
            yield server
        finally:
            await server.stop(0)
        assert asyncio.all_tasks() <= before

    return run


@pytest.fixture
def run(path: Path) -> Iterator[Run]:
    """Start a server, "ours" or "stock", in a separate process."""
    started: list[Popen[bytes]] = []

    def start(kind: str) -> Popen[bytes]:
        process = Popen([sys.executable, "-m", "tests.server.program", kind, str(path)], cwd=ROOT)
        started.append(process)
        wait_until(lambda: accepts(path), what="the server")
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


def accepts(path: Path) -> bool:
    """Return whether the socket accepts a connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True
