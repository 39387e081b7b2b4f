"""A server of HTTP that misbehaves as a test asks. The fakes of engines have it in common; each knows the words of one engine.

A fake reads `behaviour.json` in its own folder, since a test cannot set its environment. It writes two files there for the
test: `launches.jsonl` (argv and environment of each start) and `once` (the actions that were done once, over restarts).

Keys of `behaviour.json`, all optional:
    exit: print this and exit with code 1 at once
    stderr_bytes: write this number of bytes before anything else
    hang: "before-listening", "after-listening" (accepts, answers nothing) or "loading" (answers 503 for ever)
    load_seconds: load for this number of seconds, using the processor
    ignore_sigterm: ignore SIGTERM
    backlog: the number of connections that may wait to be accepted
    close_silently: close each connection after one answer, without announcing it
    always: an action for each embedding
    on: a mapping from a text to an action for it

Actions, each with "-once" for the first time only: "crash" (abort), "kill" (SIGKILL to itself), "hang", "deadlock" (no
embedding is answered any more), "deaf" (close the listener and answer nothing, as the real one does at a SIGTERM), "gone" (the
same, and remove the socket), "dying" (close all sockets, abort half a second later), "caught" (get a SIGTERM whose handler
waits for ever, as the real one's does now and then, and answer no embedding any more), "poison" (NaN for this text and for all
later ones), "sleep" (for a second, then answer), "busy" (use the processor for a second, then answer), "endless" (never end the
answer).

Other actions: "slow-death" (break off the answer, abort half a second later), "nan", "zeros", "norm-0.999", "norm-0.9996",
"norm-1.0004", "norm-1.001" (the norm of each vector), "dimension" (a value too few), "too-few" (a vector too few), "other" (the
vector of another text), "batch-differs", "batch-rounds" (it differs a little), "500", "garbage" (not of the
expected form), "not-http", "half" (close the connection in the middle of the answer), "count" (tell more tokens than there can
be).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

HERE = Path(sys.argv[0]).resolve().parent
BEHAVIOUR: dict[str, Any] = json.loads((HERE / "behaviour.json").read_text())
DIM, EOS = 64, 319
LOADED, DEADLOCKED, POISONED = threading.Event(), threading.Event(), threading.Event()


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def first_time(what: str) -> bool:
    done = HERE / "once"
    if done.exists() and what in done.read_text().splitlines():
        return False
    with done.open("a") as file:
        file.write(f"{what}\n")
    return True


def embedding(text: str) -> list[float]:
    source = random.Random(text)
    values = [source.gauss(0, 1) for _ in range(DIM)]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]


def words(text: str) -> list[int]:
    """Return one token a word."""
    return list(range(len(text.split())))


def spoil_batch(vectors: list[list[float]]) -> None:
    if len(vectors) > 1:
        vectors[0] = embedding("another text")


def round_batch(vectors: list[list[float]]) -> None:
    if len(vectors) > 1:
        mixed = [a + 0.02 * b for a, b in zip(vectors[0], embedding("another text"), strict=True)]
        norm = math.sqrt(sum(value * value for value in mixed))
        vectors[0] = [value / norm for value in mixed]


def scale_to(norm: float, vectors: list[list[float]]) -> None:
    vectors[:] = [[norm * value for value in vector] for vector in vectors]


def die_slowly(_: list[list[float]]) -> None:
    threading.Timer(0.5, os.abort).start()
    raise ConnectionError("the end of this connection")


FAULTS: dict[str, Callable[[list[list[float]]], object]] = {
    "nan": lambda vectors: vectors[0].__setitem__(3, math.nan),
    "zeros": lambda vectors: vectors[-1].__setitem__(slice(None), [0.0] * DIM),
    "dimension": lambda vectors: vectors[0].pop(),
    "too-few": lambda vectors: vectors.pop(),
    "other": lambda vectors: vectors.__setitem__(0, embedding("another text")),
    "batch-differs": spoil_batch,
    "batch-rounds": round_batch,
    "slow-death": die_slowly,
    **{f"norm-{norm}": partial(scale_to, norm) for norm in (0.999, 0.9996, 1.0004, 1.001)},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    too_many: int
    """A number of tokens that no text has."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if BEHAVIOUR.get("hang") == "after-listening":
            time.sleep(3600)
        if LOADED.is_set():
            self.answer(200, b'{"status":"ok"}')
        else:
            self.answer(503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers["Content-Length"])))

    def respond(self, question: bytes) -> None:
        """Answer a question. A subclass does so, and calls `embed` for texts."""
        raise NotImplementedError

    def pack(self, vectors: list[list[float]], counts: list[int]) -> bytes:
        """Return the answer that has these vectors and numbers of tokens. A subclass does so."""
        raise NotImplementedError

    def refuse(self, status: int, message: str) -> None:
        """Answer an error. A subclass does so."""
        raise NotImplementedError

    def embed(self, texts: list[str]) -> None:
        chosen = {action for text, action in BEHAVIOUR.get("on", {}).items() if text in texts}
        action = chosen.pop() if chosen else BEHAVIOUR.get("always", "")
        name, once, _ = action.partition("-once")
        if name in DEEDS and (not once or first_time(action)):
            DEEDS[name](self)
        if DEADLOCKED.is_set():
            time.sleep(3600)
        vectors = [embedding(text) for text in texts]
        if fault := FAULTS.get("nan" if POISONED.is_set() else action):
            fault(vectors)
        counts = [len(text.split()) + 1 for text in texts]
        match action:
            case "500":
                self.refuse(500, f"cannot embed {texts[0]!r}")
            case "garbage":
                self.answer(200, b"\xff\x00 not as it should be " + texts[0].encode())
            case "not-http":
                self.wfile.write(f"SSH-2.0-{texts[0]}\r\n\r\n".encode())
                self.close_connection = True
            case "count":
                self.answer(200, self.pack(vectors, [self.too_many] * len(texts)))
            case "half":
                body = self.pack(vectors, counts)
                self.answer(200, body, send=len(body) // 2)
            case _:
                self.answer(200, self.pack(vectors, counts))

    def answer(self, status: int, body: bytes, *, send: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:send])
        self.close_connection = send is not None or bool(BEHAVIOUR.get("close_silently"))


def turn_deaf(handler: Handler, seconds: float = 3600.0) -> None:
    handler.server.shutdown()
    handler.server.server_close()
    time.sleep(seconds)


def close_and_die(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    turn_deaf(handler, 0.5)
    os.abort()


def vanish(handler: Handler) -> None:
    Path(str(handler.server.server_address)).unlink()
    turn_deaf(handler)


def get_caught(_: Handler) -> None:
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGTERM, ctypes.cast(libc.pause, ctypes.c_void_p))
    DEADLOCKED.set()
    os.kill(os.getpid(), signal.SIGTERM)


def never_end(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1024 * 1024))


DEEDS: dict[str, Callable[[Handler], object]] = {
    "crash": lambda _: os.abort(),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda _: time.sleep(3600),
    "deadlock": lambda _: DEADLOCKED.set(),
    "deaf": turn_deaf,
    "gone": vanish,
    "dying": close_and_die,
    "caught": get_caught,
    "poison": lambda _: POISONED.set(),
    "sleep": lambda _: time.sleep(1.0),
    "busy": lambda _: burn(1.0),
    "endless": never_end,
}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = BEHAVIOUR.get("backlog", 64)

    def handle_error(self, *_: object) -> None:
        """Ignore a client that went away, like the real one."""


def serve(path: str, handler: type[Handler], warm_up: Callable[[], None] = lambda: None) -> None:
    """Listen at a path, load, and answer until a signal ends the process."""
    with (HERE / "launches.jsonl").open("a") as file:
        file.write(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}) + "\n")
    for _ in range(BEHAVIOUR.get("stderr_bytes", 0) // 100):
        sys.stderr.write("x" * 99 + "\n")
    sys.stderr.flush()
    if "exit" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["exit"])
    if BEHAVIOUR.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if BEHAVIOUR.get("hang") == "before-listening":
        time.sleep(3600)
    with Server(path, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        burn(BEHAVIOUR.get("load_seconds", 0))
        warm_up()
        if BEHAVIOUR.get("hang") != "loading":
            LOADED.set()
        while True:
            signal.pause()
