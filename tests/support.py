"""Runs the real daemon in tests, each in its own process and home."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import grpc
import httpx
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray
from runed_proto.runed.v1.runed_pb2 import DESCRIPTOR

from runed.lifecycle.listener import probe
from runed.log import write_waiting

T = TypeVar("T")

FIXTURES = Path(__file__).resolve().parent / "fixtures"

LLAMA_SERVER_ALONE = {"RUNED_ENGINE": "cpu"}
"""The setting without which each new home would compare engines for seconds, where ONNX Runtime can serve the model."""

GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""Options of a channel without grpcio's own limit of 4 MiB, so that the daemon's limit applies."""


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without any setting of runed, and with `changes`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNED_")}
    return env | changes


class _Lines(list[dict[str, Any]]):
    """Lines of the log. Those that would be written soon are written when somebody looks."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        write_waiting()
        return super().__iter__()


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Yield the list to which each line of runed's log is added during the block: its event, its level and its facts."""
    lines = _Lines()
    write_waiting()  # those of earlier calls

    class _Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append({"event": record.msg, "log_level": record.levelname.lower(), **getattr(record, "facts", {})})

    logger, capture = logging.getLogger("runed"), _Capture()
    level = logger.level
    logger.addHandler(capture)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(capture)


def http_over(socket: Path, *, timeout: float = 30.0) -> httpx.Client:
    """Return an HTTP/1.1 client on a UNIX socket. The caller closes it."""
    transport = httpx.HTTPTransport(uds=str(socket), verify=False)  # otherwise it would load certificates for 30 ms
    return httpx.Client(transport=transport, base_url="http://runed", timeout=timeout)


def short_home() -> Path:
    """Make an empty directory whose path leaves room for a socket."""
    return Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))


def wait_until(condition: Callable[[], T], *, timeout: float = 30.0, what: str = "the condition") -> T:
    """Poll until `condition` returns a true value, and return that value."""
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"{what} did not come within {timeout} s"
        time.sleep(0.02)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Fail after 10 seconds, which a busy machine may need."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 # what is waited for has no event
            await asyncio.sleep(0.01)


async def no_task_but(before: AbstractSet[asyncio.Task[Any]]) -> None:
    """Wait until only the caller's task and the given ones run. A dropped generator is still closed by a task."""
    known = before | {asyncio.current_task()}
    await eventually(lambda: asyncio.all_tasks() <= known)


def process_gone(pid: int) -> bool:
    """Return whether there is no process of that pid, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between the opening and the reading
        return True


@dataclass(frozen=True)
class Score:
    """The score that transformers gives for a pair. `tokens` are those that it read, `total_tokens` those of the whole pair."""

    query: str
    document: str
    score: float
    tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Scores:
    """Reference scores of pairs."""

    pairs: list[Score]

    @classmethod
    def load(cls, name: str) -> Self:
        return cls([Score(**row) for row in json.loads((FIXTURES / name).read_text())["pairs"]])

    def by_query(self) -> dict[str, list[Score]]:
        queries: dict[str, list[Score]] = {}
        for row in self.pairs:
            queries.setdefault(row.query, []).append(row)
        return queries


@dataclass(frozen=True)
class Golden:
    """Reference vectors: texts, token counts, and unit vectors of shape (texts, dim)."""

    texts: list[str]
    tokens: list[int]
    vectors: NDArray[np.float32]

    @classmethod
    def load(cls, name: str) -> Golden:
        """Read a file of tests/fixtures."""
        document = json.loads((FIXTURES / name).read_text())
        entries = document["fixtures"]
        return cls(
            texts=[entry["text"] for entry in entries],
            tokens=[entry["tokens"] for entry in entries],
            vectors=np.array([entry["vector"] for entry in entries], dtype=np.float32),
        )

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each vector with its reference."""
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(self.vectors, axis=1)
        result: NDArray[np.float32] = np.sum(vectors * self.vectors, axis=1) / norms
        return result


def python_without(*packages: str, folder: Path) -> Path:
    """Make an environment with everything that this one has installed but some packages. Return its interpreter."""
    venv.create(folder, symlinks=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.partition("-")[0] not in packages and not (inside / entry.name).exists():
            (inside / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


class RunningDaemon:
    """A real `runed` in the foreground, logging to a file.

    Args:
        home: Its `RUNED_HOME`.
        env: Further settings of the environment.
        python: The interpreter.
    """

    def __init__(self, home: Path, env: Mapping[str, str], *, python: str | Path = sys.executable) -> None:
        self.home = home
        self.environment = clean_environment(RUNED_HOME=str(home), **env)
        self.log_path = home / "foreground.log"
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [python, "-m", "runed"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def socket(self) -> Path:
        """The public socket."""
        return self.home / "embedding.sock"

    def http(self, *, timeout: float = 30.0) -> httpx.Client:
        """Return an HTTP/1.1 client on the socket. The caller closes it."""
        return http_over(self.socket, timeout=timeout)

    def call(self, method: str, body: Mapping[str, object] | None = None, **kwargs: float) -> dict[str, Any]:
        """Call a method by Connect with JSON, and return the decoded answer, also that of an error."""
        with self.http(**kwargs) as http:
            answer: dict[str, Any] = http.post(f"/runed.v1.RunedService/{method}", json=dict(body or {})).json()
        return answer

    def health(self) -> dict[str, Any]:
        """Return the answer of Health, or {} while nobody listens."""
        if not probe(self.socket):  # httpx would leak its socket here
            return {}
        try:
            return self.call("Health")
        except httpx.TransportError:
            return {}

    def wait_for(self, status: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until Health tells a status, for example "STATUS_OK"."""

        def ready() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"the daemon exited: {self.log()}"
            health = self.health()
            return health if health.get("status") == status else None

        health = wait_until(ready, timeout=timeout, what=f"{status} (now {self.health()})")
        assert health is not None
        return health

    def log(self) -> str:
        """Return the whole output of the daemon."""
        return self.log_path.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log as one dictionary a line."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 30.0) -> int:
        """Send a signal if the daemon still runs, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            self.close()

    def close(self) -> None:
        """Kill the daemon if it still runs."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        self._log.close()

    def remove_home(self) -> None:
        """Remove the home and its alias."""
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def running_daemon(llama_server: Path, model: Path, **settings: str) -> Iterator[RunningDaemon]:
    """Run a daemon in its own home, and return it when it is ready. Check at the end that it exits with 0."""
    env = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(model)} | LLAMA_SERVER_ALONE
    daemon = RunningDaemon(short_home(), env | settings)
    try:
        daemon.wait_for("STATUS_OK")
        yield daemon
        assert daemon.stop() == 0, daemon.log()
    finally:
        daemon.close()
        daemon.remove_home()


@dataclass(frozen=True)
class Refusal:
    """An error of the contract, read from any protocol."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str]
    retry_seconds: float | None


@dataclass(frozen=True)
class Answer:
    """The outcome of a call: a message or a refusal."""

    message: Message | None = None
    refusal: Refusal | None = None


PROTOCOLS = ("connect+proto", "connect+json", "grpc", "grpc-web")


def call(
    protocol: str,
    socket: Path,
    method: str,
    request: Message,
    *,
    timeout: float = 30.0,
    contract: FileDescriptor = DESCRIPTOR,
) -> Answer:
    """Call a method of RunedService in one protocol, like a client with that contract.

    gRPC uses grpcio. The requests of Connect and gRPC-Web are built here, and sent by httpx.
    """
    descriptor = contract.services_by_name["RunedService"].methods_by_name[method]
    output = GetMessageClass(descriptor.output_type)
    if protocol == "grpc":
        return _call_grpc(socket, method, request, output, timeout)
    with http_over(socket, timeout=timeout) as http:
        path = f"/runed.v1.RunedService/{method}"
        if protocol == "connect+json":
            response = http.post(path, content=MessageToJson(request), headers={"content-type": "application/json"})
            if response.status_code == 200:
                return Answer(message=Parse(response.text, output(), ignore_unknown_fields=True))
            return Answer(refusal=refusal_of_json(response.json()))
        if protocol == "connect+proto":
            body = request.SerializeToString()
            response = http.post(path, content=body, headers={"content-type": "application/proto"})
            if response.status_code == 200:
                return Answer(message=output.FromString(response.content))
            return Answer(refusal=refusal_of_json(response.json()))
        body = request.SerializeToString()
        frame = struct.pack(">BI", 0, len(body)) + body
        response = http.post(path, content=frame, headers={"content-type": "application/grpc-web+proto"})
        return _answer_of_grpc_web(response, output)


def raw_stub(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return the method at a path. It takes and returns encoded messages."""
    return channel.unary_unary(path)


def refusal_of_json(body: dict[str, Any]) -> Refusal:
    """Read the error of the Connect protocol."""
    details = [
        AnyMessage(type_url=f"type.googleapis.com/{detail['type']}", value=base64.b64decode(detail["value"] + "=="))
        for detail in body.get("details", [])
    ]
    return _refusal(body["code"], body.get("message", ""), details)


def refusal_of_trailers(trailers: Mapping[str, str]) -> Refusal | None:
    """Return the error in the trailers of gRPC-Web, or of gRPC over raw HTTP/2; None if the call succeeded."""
    if (number := trailers["grpc-status"]) == "0":
        return None
    status = Status.FromString(base64.b64decode(trailers.get("grpc-status-details-bin", "") + "=="))
    return _refusal(Code.Name(int(number)).lower(), status.message, status.details)


def _refusal(code: str, message: str, details: Iterable[AnyMessage]) -> Refusal:
    info, retry = ErrorInfo(), RetryInfo()
    retried = False
    for detail in details:
        detail.Unpack(info)
        retried |= detail.Unpack(retry)
    assert not info.reason or info.domain == "runed.v1"
    seconds = retry.retry_delay.ToMilliseconds() / 1000 if retried else None
    return Refusal(code, info.reason, message, dict(info.metadata), seconds)


def _call_grpc(socket: Path, method: str, request: Message, output: type[Message], timeout: float) -> Answer:
    with grpc.insecure_channel(f"unix:{socket}", options=GRPC_OPTIONS) as channel:
        stub = raw_stub(channel, f"/runed.v1.RunedService/{method}")
        try:
            return Answer(message=output.FromString(stub(request.SerializeToString(), timeout=timeout)))
        except grpc.RpcError as error:
            trailers: dict[str, Any] = dict(cast("Iterable[tuple[str, Any]]", error.trailing_metadata()) or ())
            status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
            return Answer(refusal=_refusal(error.code().name.lower(), error.details() or "", status.details))


def _answer_of_grpc_web(response: httpx.Response, output: type[Message]) -> Answer:
    trailers = {name: value for name, value in response.headers.items() if name.startswith("grpc-")}
    message: Message | None = None
    body = response.content
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        payload, body = body[5 : 5 + length], body[5 + length :]
        if flags & 0x80:
            trailers |= dict(line.split(": ", 1) for line in payload.decode().splitlines())
        else:
            message = output.FromString(payload)
    if (refusal := refusal_of_trailers(trailers)) is not None:
        return Answer(refusal=refusal)
    assert message is not None
    return Answer(message=message)
