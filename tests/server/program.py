"""Runs a server in a separate process: `python -m tests.server.program ours|stock SOCKET`. SIGTERM drains it in 5 seconds."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

from hypercorn.asyncio import serve
from hypercorn.config import Config

from runed.server import Server
from tests.server.app import Servicer, build_app

GRACE = 5


async def serve_ours(path: Path, asked_to_stop: asyncio.Event) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        server = Server(build_app(Servicer()), sock)
        await server.start()
        await asked_to_stop.wait()
        await server.stop(GRACE)


async def serve_stock(path: Path, asked_to_stop: asyncio.Event) -> None:
    config = Config()
    config.bind = [f"unix:{path}"]
    config.graceful_timeout = GRACE
    await serve(build_app(Servicer()), config, shutdown_trigger=asked_to_stop.wait)


async def main(kind: str, path: Path) -> None:
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    await {"ours": serve_ours, "stock": serve_stock}[kind](path, asked_to_stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
