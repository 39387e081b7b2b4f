"""The yardstick: `llama-server` with the daemon's own flags, and a client that does as little as possible."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runed.settings import engine_environment

HTTP_THREADS = 80
"""HTTP threads of the server, more than concurrent clients. A connection without a thread is not read."""

_TOKENS_A_SLOT = 64
"""Tokens of a slot, enough for a short text. The texts in all slots share the context."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP/1.1 connection over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=300)
        self._path = path

    def connect(self) -> None:
        """Connect, as `HTTPConnection` does over TCP."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class RawClient:
    """A client of a raw server with one connection, with the methods of `runed.Client` that are measured.

    Args:
        path: The server's socket.
    """

    def __init__(self, path: Path) -> None:
        self._connection: http.client.HTTPConnection = UnixConnection(path)
        self._headers = {"Content-Type": "application/json"}

    def embed(self, text: str) -> NDArray[np.float32]:
        """Embed one text. The vector has shape (dim,)."""
        return self._ask(text)[0]

    def embed_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts by one request. The vectors have shape (n, dim)."""
        return np.stack(self._ask(list(texts)))

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Score documents by one request. The scores are in the order of the documents."""
        answer = self._post("/v1/rerank", json.dumps({"query": query, "documents": list(documents)}))
        scores = {item["index"]: float(item["relevance_score"]) for item in answer["results"]}
        return [scores[index] for index in range(len(documents))]

    def healthy(self) -> bool:
        """Return whether the server has loaded its model."""
        try:
            self._connection.request("GET", "/health")
            response = self._connection.getresponse()
            response.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            return False
        return response.status == 200

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: str | list[str]) -> list[NDArray[np.float32]]:
        answer = self._post("/v1/embeddings", json.dumps({"input": question, "encoding_format": "base64"}))
        return [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]]

    def _post(self, path: str, body: str) -> dict[str, list[dict[str, Any]]]:
        status, answer = self._exchange(path, body)
        assert status == 200, answer
        parsed: dict[str, list[dict[str, Any]]] = json.loads(answer)
        return parsed

    def _exchange(self, path: str, body: str) -> tuple[int, bytes]:
        """Send a request on the kept connection. Connect again if the server has closed it."""
        for attempt in (1, 2):
            try:
                self._connection.request("POST", path, body, self._headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if attempt == 2:
                    raise
        raise AssertionError


class RawServer:
    """A `llama-server` of the benchmark's own. As a context manager, it runs inside the block.

    Args:
        argv: The command line of the daemon's engine.
        socket_path: The socket that this one listens on instead.
        slots: The number of its slots; None means as many as the daemon's engine has.
        pass_tokens: The tokens that it computes at once; None means as many as the daemon's engine does.
    """

    def __init__(
        self, argv: Sequence[str], socket_path: Path, *, slots: int | None = None, pass_tokens: int | None = None
    ) -> None:
        self.argv = list(argv)
        self.socket = socket_path
        self._set("--host", str(socket_path))
        self._set("--threads-http", str(HTTP_THREADS))
        if slots is not None:
            self._set("--parallel", str(slots))
            self._set("--ctx-size", str(max(int(flag(argv, "--ctx-size")), slots * _TOKENS_A_SLOT)))
            self.argv = [part for part in self.argv if part != "--kv-unified"]
            if slots > 1:
                self.argv.append("--kv-unified")
        if pass_tokens is not None:
            self._set("--batch-size", str(pass_tokens))
            self._set("--ubatch-size", str(pass_tokens))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it, and return the seconds until `/health` answers 200."""
        if self.socket.is_absolute():  # otherwise it is an address
            self.socket.unlink(missing_ok=True)
        began = time.perf_counter()
        self._process = subprocess.Popen(
            self.argv, env=engine_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with self.connect() as client:
            while not client.healthy():
                assert self._process.poll() is None, "raw llama-server exited"
                time.sleep(0.002)
        return time.perf_counter() - began

    def stop(self) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def connect(self) -> RawClient:
        """Return a new client, which the caller closes."""
        return RawClient(self.socket)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _set(self, flag: str, value: str) -> None:
        self.argv[self.argv.index(flag) + 1] = value


def flag(argv: Sequence[str], name: str) -> str:
    """Return the value of a flag of a command line."""
    return argv[argv.index(name) + 1]
