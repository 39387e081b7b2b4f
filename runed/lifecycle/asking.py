"""Questions to a daemon that runs, for commands that have to be quick. No daemon is started.

The client needs 0.2 s of imports, most of them for vectors and for protobuf. Here, the daemon answers in JSON. Fields that an
older daemon does not know have their defaults.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from runed.errors import DaemonUnavailableError, DeadlineExceededError, RunedError
from runed.lifecycle.listener import dial
from runed.lifecycle.service import is_dormant
from runed.paths import Paths
from runed.setting_values import boolean

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""Seconds that a daemon may take to answer `Info` or `Health`, which are cheap."""

_SHARE_OF_INFO = 0.7
"""The part of the time that Info may take. It waits for a model that is being looked for, and leaves time for Health."""

_PAUSE = 0.1
"""Seconds between two tries, if the daemon breaks connections or has too many."""

_OK = 200


class Lane(msgspec.Struct, rename="camel", frozen=True):
    """As `runed.LaneHealth`."""

    queued_texts: int = 0
    queued_bytes: int = 0
    total_texts: int = 0
    wait_p50_seconds: float = 0.0
    wait_p99_seconds: float = 0.0


class Model(msgspec.Struct, rename="camel", frozen=True):
    """As `ModelHealth` of runed.proto."""

    name: str = ""
    status: str = ""
    phase: str | None = None
    message: str = ""
    variant: str = ""
    file: str = ""
    engine_version: str = ""
    engine_path: str = ""
    engine_pid: int = 0
    accelerator: str = ""
    device: str = ""
    slots: int = 0
    context: int = 0
    tuned_at: str = ""
    device_tuned_at: str = ""
    memory_bytes: int = 0
    keep_alive_seconds: float = 0.0
    seconds_until_sleep: float = 0.0
    engine_reason: str = ""


class Connected(msgspec.Struct, rename="camel", frozen=True):
    """As `ConnectedClient` of runed.proto."""

    pid: int = 0
    name: str = ""
    connections: int = 0

    def __str__(self) -> str:
        """Return the program for people."""
        name = self.name or "a program that cannot be seen from there"
        return f"{name} (pid {self.pid})" if self.pid else name


class Setting(msgspec.Struct, rename="camel", frozen=True):
    """As `SettingInForce` of runed.proto."""

    name: str = ""
    variable: str = ""
    value: str = ""
    origin: str = ""


class Health(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """As `runed.Health`. The names of states and phases are those of `runed.Status` and `runed.Phase`."""

    status: str = "UNSPECIFIED"
    phase: str | None = None
    bytes_done: int = 0
    bytes_total: int = 0
    message: str = ""
    uptime_seconds: int = 0
    total_requests: int = 0
    in_flight_requests: int = 0
    pid: int = 0
    engine_pid: int = 0
    engine_restarts: int = 0
    interactive: Lane = Lane()
    bulk: Lane = Lane()
    total_texts: int = 0
    total_tokens: int = 0
    tokens_per_second: float = 0.0
    total_batches: int = 0
    mean_batch_texts: float = 0.0
    cache_hits: int = 0
    shared_texts: int = 0
    cache_entries: int = 0
    cache_bytes: int = 0
    refused_requests: int = 0
    disk_cache_bytes: int = 0
    model: str = ""
    loaded_models: int = 0
    models: tuple[Model, ...] = ()
    clients: tuple[Connected, ...] = ()

    @property
    def is_degraded(self) -> bool:
        """Whether embeddings fail, with the default model or another one that was asked for."""
        return "DEGRADED" in {self.status, *(model.status for model in self.models)}

    def others(self) -> list[Connected]:
        """Return the clients but this process. Its pid is another one for a daemon in another pid namespace."""
        own = os.getpid()
        if any(client.pid == own for client in self.clients):
            return [client for client in self.clients if client.pid != own]
        alike = [client for client in self.clients if not client.pid or "runed" in client.name]
        return [client for client in self.clients if client is not min(alike, key=lambda each: each.connections, default=None)]


class Info(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """As `runed.Info`."""

    daemon_version: str = ""
    socket_path: str = ""
    max_batch_size: int = 0
    max_request_bytes: int = 0
    model_identity: str = ""
    model_name: str = ""
    model_variant: str = ""
    vector_dim: int = 0
    max_text_length: int = 0
    pooling: str = ""
    engine_version: str = ""
    centroid_set_version: str = ""
    fingerprint: str = ""
    min_dimensions: int = 0
    query_prompt: str = ""
    document_prompt: str = ""
    default_instruction: str = ""
    profile: str = ""
    max_queued_texts: int = 0
    max_queued_bytes: int = 0
    restrictions: tuple[str, ...] = ()
    accelerator: str = ""
    device: str = ""
    device_tuned_at: str = ""
    company_cosine: float = 0.0
    tuned_at: str = ""
    model: str = ""
    settings: tuple[Setting, ...] = ()
    prompts_unknown: bool = False

    @property
    def needs_token(self) -> bool:
        """Whether requests to the port need the token. An older daemon, which does not tell its settings, always wants it."""
        value = next((setting.value for setting in self.settings if setting.name == "http_token"), "on")
        return boolean(value, "http_token")


class Asker:
    """Asks a daemon, one question after another. A connection is kept as long as the daemon keeps it; one that drains does not.

    Args:
        paths: The home of the daemon.
        timeout: Seconds until which all questions have to be answered.
        each: Whether each question has so much time.

    Each question raises:
        DaemonUnavailableError: No daemon listens. A service manager that does so is not connected to.
        DeadlineExceededError: It takes no connection in time, or does not answer.
    """

    def __init__(self, paths: Paths, *, timeout: float = ANSWER_SECONDS, each: bool = False) -> None:
        self._paths = paths
        self._timeout = timeout
        self._each = each
        self._deadline = time.monotonic() + timeout
        self._body = b""
        self._done = False
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disconnect()

    def info(self) -> Info:
        """Return the description of the daemon, as far as it knows its model yet."""
        return self._call("Info", {}, Info, share=_SHARE_OF_INFO)

    def health(self, model: str = "", *, detailed: bool = False) -> Health:
        """Return the present state of the daemon.

        Args:
            model: The model whose state it is; "" for the default model.
            detailed: Whether to tell all models and clients.

        Raises:
            RunedError: There is no model of this name.
        """
        return self._call("Health", {"model": model, "detailed": detailed}, Health)

    def shut_down(self, grace_seconds: int) -> None:
        """Ask the daemon to drain and exit."""
        self._call("Shutdown", {"graceSeconds": grace_seconds}, dict)

    def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        self._begin()
        return self._exchange(b"GET /metrics HTTP/1.1\r\nhost: runed\r\n\r\n")[1].decode()

    def _call(self, method: str, request: Mapping[str, object], type_: type[T], *, share: float = 1.0) -> T:
        self._begin()
        body = msgspec.json.encode(request)
        limit = max(1, math.floor((self._deadline - time.monotonic()) * share * 1000))
        head = (
            f"POST /runed.v1.RunedService/{method} HTTP/1.1\r\nhost: runed\r\ncontent-type: application/json\r\n"
            f"connect-timeout-ms: {limit}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        status, answer = self._exchange(head.encode() + body)
        if status == _OK:
            # int64 is a string in the JSON of protobuf.
            return msgspec.convert(_without_prefixes(msgspec.json.decode(answer)), type_, strict=False)
        raise _error(answer)

    def _begin(self) -> None:
        if self._each:
            self._deadline = time.monotonic() + self._timeout

    def _exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer."""
        self._body, self._done = b"", False
        parser = HttpResponseParser(self)
        try:
            connection = self._connected()
            connection.sendall(request)
            while not self._done:
                connection.settimeout(self._remaining())
                if not (data := connection.recv(256 * 1024)):
                    raise DaemonUnavailableError("the daemon broke the connection; it ended, or has too many connections")
                parser.feed_data(data)
        except (BlockingIOError, TimeoutError):
            raise DeadlineExceededError(f"the daemon did not answer within {self._timeout:g} s; see `runed logs`") from None
        except (HttpParserError, HttpParserUpgrade):
            raise RunedError("what listens on the socket does not answer as runed; is it another program's socket?") from None
        except OSError as error:
            raise DaemonUnavailableError(f"the connection to the daemon broke: {error.strerror or error}") from None
        if not parser.should_keep_alive():
            self._disconnect()
        return parser.get_status_code(), self._body

    def _connected(self) -> socket.socket:
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self._disconnect()  # the daemon has closed it meanwhile
        if self._socket is None:
            if is_dormant(self._paths):
                raise DaemonUnavailableError(
                    f"no daemon runs for {self._paths.home}; a connection would start one, by its service"
                )
            self._socket = dial(self._paths.socket, timeout=self._remaining())
        self._socket.settimeout(self._remaining())
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def on_body(self, data: bytes) -> None:
        """Take a part of the body, for httptools."""
        self._body += data

    def on_message_complete(self) -> None:
        """Note the end of the answer, for httptools."""
        self._done = True


def look(paths: Paths, *, timeout: float = ANSWER_SECONDS) -> tuple[Info, Health]:
    """Return the description and the present state of a daemon that runs.

    Args:
        paths: Its home.
        timeout: Seconds that both may take.

    Raises:
        DaemonUnavailableError: No daemon answers.
        DeadlineExceededError: It did not answer in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with Asker(paths, timeout=max(deadline - time.monotonic(), 0.001)) as asker:
                # Info waits a while for a model that is being looked for; a Health from before would contradict it.
                return asker.info(), asker.health(detailed=True)
        except _BusyError as error:
            if time.monotonic() + _PAUSE > deadline:
                raise DeadlineExceededError(error.message) from None
            time.sleep(_PAUSE)


class _BusyError(RunedError):
    """The daemon has too much to do for the moment."""


def _error(answer: bytes) -> RunedError:
    message, code = "the daemon answered with an error; see `runed logs`", ""
    with contextlib.suppress(ValueError, AttributeError):
        document = msgspec.json.decode(answer)
        message, code = str(document.get("message") or message), document.get("code")
    return (_BusyError if code in {"unavailable", "resource_exhausted"} else RunedError)(message)


def _without_prefixes(answer: dict[str, Any]) -> dict[str, Any]:
    """Shorten the names of states and phases, in the answer itself."""
    for document in (answer, *answer.get("models", ())):
        for name in ("status", "phase"):
            if name in document:
                document[name] = str(document[name]).removeprefix(f"{name.upper()}_")
    return answer
