"""The yardstick: `llama-server` itself, with the daemon's own flags, spoken to by the leanest client there is."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runed.settings import engine_environment


class UnixConnection(http.client.HTTPConnection):
    """An HTTP/1.1 connection over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Connect, as `HTTPConnection` does over TCP."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class RawServer:
    """A `llama-server` of our own.

    Args:
        argv: The command line of the daemon's engine.
        socket_path: Where this one listens instead.
    """

    def __init__(self, argv: list[str], socket_path: Path) -> None:
        self._argv = argv[:]
        self._argv[self._argv.index("--host") + 1] = str(socket_path)
        self._socket = socket_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and give the seconds until `/health` answers 200."""
        self._socket.unlink(missing_ok=True)
        began = time.perf_counter()
        self._process = subprocess.Popen(
            self._argv, env=engine_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not self._healthy():
            assert self._process.poll() is None, "raw llama-server exited"
            time.sleep(0.002)
        return time.perf_counter() - began

    def stop(self) -> None:
        """End it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)

    def embed(self, connection: UnixConnection, text: str) -> bytes:
        """Embed one text on a kept connection, which the server closes now and then."""
        body = json.dumps({"input": text, "encoding_format": "base64"})
        for attempt in (1, 2):
            try:
                connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
            except (http.client.HTTPException, OSError):
                connection.close()
                if attempt == 2:
                    raise
            else:
                assert response.status == 200, answer
                return answer
        raise AssertionError

    @contextmanager
    def connect(self) -> Iterator[UnixConnection]:
        """Give a connection that is closed at the end."""
        connection = UnixConnection(self._socket)
        try:
            yield connection
        finally:
            connection.close()

    def _healthy(self) -> bool:
        try:
            with self.connect() as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
        except OSError:
            return False
