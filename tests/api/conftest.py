"""Fixtures that serve a `FakeHost` on a real socket, with the real server and application."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from runed.api.app import build_app
from runed.server import Server
from tests.fakes.fake_host import FakeHost
from tests.support import Answer, call, no_task_but


@dataclass(frozen=True)
class Served:
    """A fake host that this process serves."""

    host: FakeHost
    path: Path
    server: Server

    async def call(self, protocol: str, method: str, request: Message) -> Answer:
        """Call a method, like `tests.support.call`."""
        return await asyncio.to_thread(call, protocol, self.path, method, request)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(home: Path) -> Serve:
    """Serve a fake host. Keyword arguments are settings of the server. Fail if anything still runs at the end."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Served]:  # noqa: ANN401 # each has a type of its own
        host = FakeHost()
        before = asyncio.all_tasks()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(home / "s"))
            sock.listen()
            server = Server(build_app(host), sock, **settings)
            await server.start()
            try:
                yield Served(host, home / "s", server)
            finally:
                await server.stop(0)
        await no_task_but(before)
        assert host.busy == 0

    return run


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """A fake host that is served with default settings of the server."""
    async with serve() as served:
        yield served
