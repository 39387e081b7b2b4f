"""An engine on another machine that misbehaves on demand. It speaks the API of OpenAI, or that of Text Embeddings Inference.

Its vectors are sums of random directions, one for each word, so that they depend on the text alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass
class Behaviour:
    """How the engine answers. A test changes it at any time.

    Attributes:
        api: "openai", "tei", or "none" for another service.
        model: The name of its model.
        owner: Who owns the model, by its list of models.
        dim: The number of values of a vector.
        seed: The model: another seed is another space.
        key: The key that it wants, or "".
        delay: Seconds before each answer with vectors.
        script: Answers to the next questions instead of vectors: status, headers and body.
        max_batch: The most texts of a question; 0 for any number.
        too_many: Status and body of the answer to more.
        max_words: The most words of a text; 0 for any number.
        too_long: Status and body of the answer to a longer one; status 0 cuts it silently.
        order: "indexed" answers in another order than asked, "wrong" with numbers of other texts, "short" leaves one out.
        spoil: The value in the place of the first one of vectors of texts with the word "spoiled".
        encoding: "base64" or "float" whatever was asked for; "" for what was asked for, "refused" refuses base64.
        cut: Whether to end the connection amid an answer with vectors.
        norm: The norm of its vectors.
        tells_tokens: Whether it tells the tokens of a question.
        redirect: Where to send questions, or "".
        digest: What it tells of the content of its model (TEI, and Ollama's `tags`).
        tags: Whether it lists its models as Ollama does.
        kind: The kind of its model (TEI).
        wobble: The size of random changes of each value, as of an engine that rounds.
        closes: Whether it closes each connection after one answer, and says so.
        raw: Makes the bytes of each answer, piece by piece, head included. They are sent until they end or the reader goes.
    """

    api: str = "openai"
    model: str = "toy"
    owner: str = "somebody"
    dim: int = 16
    seed: int = 1
    key: str = ""
    delay: float = 0.0
    script: deque[tuple[int, dict[str, str], bytes]] = field(default_factory=deque)
    max_batch: int = 0
    too_many: tuple[int, bytes] = (413, b"payload too large")
    max_words: int = 0
    too_long: tuple[int, bytes] = (400, b'{"error": {"message": "maximum context length is 5 tokens"}}')
    order: str = ""
    spoil: float | None = None
    encoding: str = ""
    cut: bool = False
    norm: float = 1.0
    tells_tokens: bool = True
    redirect: str = ""
    digest: str = ""
    tags: bool = False
    kind: str = "embedding"
    wobble: float = 0.0
    closes: bool = False
    raw: Callable[[], Iterable[bytes]] | None = None


@dataclass(frozen=True)
class Seen:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class FakeRemote:
    """A server on a loopback port.

    Args:
        tls: Encrypts connections, or None.
        port: The port; 0 for any.
        seed: As in `Behaviour`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0, seed: int = 1) -> None:
        self.behaviour = Behaviour(seed=seed)
        self.seen: list[Seen] = []
        self.broken = 0
        """The number of answers whose reader had gone."""
        self.sent = 0
        """The bytes of raw answers that were sent."""
        self.now = 0
        """The questions for vectors that are being answered."""
        self.most_at_once = 0
        """The most of them at any time."""
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            remote = owner

        self._server = _Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """End the server and all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()

    @property
    def questions(self) -> list[list[str]]:
        """The texts of each question that asked for vectors."""
        asked = [seen.body for seen in self.seen if seen.path in {"/v1/embeddings", "/embeddings", "/embed"}]
        return [body.get("input") or body.get("inputs") for body in asked]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # those of the base
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        self.connections.add(request)
        return request, address

    def hang_up(self) -> None:
        for connection in self.connections:
            connection.close()

    def server_close(self) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 # those of the base
        """Say nothing: clients of these tests go on purpose."""


class _Handler(BaseHTTPRequestHandler):
    remote: FakeRemote
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 # the name of the base
        """Log nothing."""

    def handle(self) -> None:
        """Answer as real servers do to an encrypted greeting: at once. The base waits for the end of its first line."""
        if not isinstance(self.connection, ssl.SSLSocket) and self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.connection.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            return
        super().handle()

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._handle(json.loads(body))

    def _handle(self, body: Any) -> None:  # noqa: ANN401 # JSON
        how = self.remote.behaviour
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.remote.seen.append(Seen(self.command, self.path, headers, body))
        if how.raw is not None:
            self._pour(how.raw())
        elif how.redirect:
            self._send(307, {"location": how.redirect + self.path}, b"")
        elif how.key and headers.get("authorization") != f"Bearer {how.key}":
            self._send(401, {}, b'{"error": {"message": "no such key: ' + headers.get("authorization", "").encode() + b'"}}')
        elif body is None:
            self._look(how)
        elif how.script:
            self._send(*how.script.popleft())
        elif self.path == "/tokenize":
            self._tokenize(how, body)
        elif self.path in {"/v1/embeddings", "/embed"}:
            self._embed(how, body)
        else:
            self._send(404, {}, b"there is no such page")

    def _pour(self, pieces: Iterable[bytes]) -> None:
        self.close_connection = True
        try:
            for piece in pieces:
                self.wfile.write(piece)
                self.remote.sent += len(piece)
        except OSError:
            self.remote.broken += 1

    def _look(self, how: Behaviour) -> None:
        if (self.path, how.api) == ("/v1/models", "openai"):
            name = f"{how.model}:latest" if how.tags else how.model
            listing = {"data": [{"id": name, "object": "model", "owned_by": how.owner, "max_model_len": 100}]}
            self._send(200, {}, json.dumps(listing).encode())
        elif (self.path, how.api) == ("/info", "tei"):
            info = {"model_id": how.model, "max_input_length": 50, "max_client_batch_size": 8, "model_sha": how.digest}
            info |= {"model_type": {how.kind: {"pooling": "mean"}}}
            self._send(200, {}, json.dumps(info).encode())
        elif self.path == "/api/tags" and how.tags:
            self._send(200, {}, json.dumps({"models": [{"name": f"{how.model}:latest", "digest": how.digest}]}).encode())
        else:
            self._send(404, {"content-type": "text/html"}, b"<html>there is no such page</html>")

    def _tokenize(self, how: Behaviour, body: dict[str, Any]) -> None:
        """A word is a token, and so are the beginning and the end."""
        if how.api == "tei":
            ids = [[{"id": number} for number in [101, *map(_number, text.split()), 102]] for text in body["inputs"]]
            self._send(200, {}, json.dumps(ids).encode())
        else:
            text = body["prompt"] if "prompt" in body else body["content"]
            self._send(200, {}, json.dumps({"tokens": [101, *map(_number, text.split()), 102]}).encode())

    def _embed(self, how: Behaviour, body: dict[str, Any]) -> None:
        texts: list[str] = body["input"] if "input" in body else body["inputs"]
        with self.remote.lock:
            self.remote.now += 1
            self.remote.most_at_once = max(self.remote.most_at_once, self.remote.now)
        time.sleep(how.delay)
        with self.remote.lock:
            self.remote.now -= 1
        if refusal := _refusal(how, body, texts):
            self._send(refusal[0], {}, refusal[1])
            return
        if how.max_words:
            texts = [" ".join(text.split()[: how.max_words]) for text in texts]
        vectors = [vector_of(text, how) for text in texts]
        tokens = sum(len(text.split()) for text in texts) if how.tells_tokens else 0
        if how.api == "tei":
            answer = json.dumps([_numbers(vector) for vector in vectors]).encode()
            self._send(200, {"x-compute-tokens": str(tokens)}, answer, cut=how.cut)
            return
        encoding = how.encoding.replace("refused", "") or body.get("encoding_format") or "float"
        items: list[dict[str, Any]] = [
            {"index": index, "embedding": base64.b64encode(v.tobytes()).decode() if encoding == "base64" else _numbers(v)}
            for index, v in enumerate(vectors)
        ]
        if how.order == "indexed":
            items.reverse()
        elif how.order == "wrong":
            items[0]["index"] = len(items)
        elif how.order == "short":
            items.pop()
        document = {"data": items, "model": how.model} | ({"usage": {"prompt_tokens": tokens}} if tokens else {})
        self._send(200, {}, json.dumps(document).encode(), cut=how.cut)

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.remote.behaviour.closes:
                self.send_header("connection", "close")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.wfile.flush()
        except OSError:
            self.remote.broken += 1
            self.close_connection = True
        if cut:
            self.close_connection = True


def _refusal(how: Behaviour, body: dict[str, Any], texts: list[str]) -> tuple[int, bytes] | None:
    """Return status and body of the answer to a question that is refused, or None."""
    if how.encoding == "refused" and body.get("encoding_format") == "base64":
        return 400, b'{"error": "encoding_format: only float is known"}'
    if how.max_batch and len(texts) > how.max_batch:
        return how.too_many
    if how.max_words and how.too_long[0] and any(len(text.split()) > how.max_words for text in texts):
        return how.too_long
    return None


def vector_of(text: str, how: Behaviour) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the vector of a text."""
    words = sum(_direction(word, how) for word in text.split())
    values = words / np.linalg.norm(words) * how.norm + how.wobble * np.random.default_rng().standard_normal(how.dim)
    if how.spoil is not None and "spoiled" in text:
        values[0] = how.spoil
    return np.asarray(values, "<f4")


def _numbers(vector: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    return [float(value) for value in vector]


def _number(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:2]) + 1000


def _direction(word: str, how: Behaviour) -> np.ndarray[Any, np.dtype[np.float64]]:
    seed = int.from_bytes(hashlib.sha256(f"{how.seed} {word}".encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(how.dim)
