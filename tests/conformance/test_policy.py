"""The Python client against `policy.json`, which the clients of all languages follow."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from runed_proto.runed.v1.runed_pb2 import (
    CountTokensResponse,
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedResponse,
    EmbedStreamRequest,
    HealthResponse,
    InfoResponse,
    WarmUpResponse,
)

import runed
import runed.paths
import runed.testing
from runed import errors
from runed.api.error_codes import code_of
from runed.client import target
from runed.client.calls import answers, centroids, daemon_flows, patience, pending, texts
from runed.client.calls.centroids import set_centroids_flow
from runed.client.calls.flows import Flows
from runed.client.calls.patience import Deadline, Patience
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Ensure, Send, Sleep
from runed.client.calls.stream import stream_flow
from runed.client.options import Options
from runed.client.target import Target
from runed.client.transport import blocking, slots
from runed.client.wire.unary import error_of
from runed.errors import error_of_reason
from runed.lifecycle.spawn import _release
from tests.users import OTHER, listening_as_other, needs_root

POLICY: dict[str, Any] = json.loads((Path(__file__).parent / "policy.json").read_text())

CONSTANTS = {
    "retry_patience_seconds": patience.MAX_PATIENCE,
    "retry_growth": patience._GROWTH,
    "retry_shortest_seconds": patience._SHORTEST,
    "retry_longest_seconds": patience._LONGEST,
    "lost_tries": daemon_flows._MAX_RETRIES,
    "lost_pause_seconds": daemon_flows._RETRY_PAUSE,
    "drain_poll_seconds": daemon_flows._DRAIN_POLL,
    "drain_patience_seconds": daemon_flows._MAX_DRAIN,
    "bootstrap_first_poll_seconds": daemon_flows._POLL_FIRST,
    "bootstrap_longest_poll_seconds": daemon_flows._POLL_MOST,
    "dial_pause_seconds": blocking.DIAL_PAUSE,
    "dial_patience_seconds": blocking.DIAL_PATIENCE,
    "connections": slots.MAX_CONNECTIONS,
    "start_patience_seconds": target._START_TIMEOUT,
    "socket_path_bytes": runed.paths.MAX_SOCKET_PATH,
    "stream_texts": pending.MAX_TEXTS,
    "stream_bytes": pending.MAX_BYTES,
    "message_texts": pending.MESSAGE_TEXTS,
    "message_bytes": pending.MESSAGE_BYTES,
    "item_overhead_bytes": pending._ITEM_OVERHEAD,
    "text_overhead_bytes": texts.TEXT_OVERHEAD,
    "large_text_bytes": texts.LARGE_TEXT,
    "fallback_batch_texts": answers._FALLBACK_BATCH_SIZE,
    "fallback_request_bytes": answers._FALLBACK_REQUEST_BYTES,
    "centroid_message_bytes": centroids.MESSAGE_BYTES,
}


def rows(part: str, name: Callable[[dict[str, Any]], str]) -> pytest.MarkDecorator:
    """Try a part of the policy row by row."""
    table = POLICY[part]["rows"]
    return pytest.mark.parametrize("row", table, ids=[name(row) for row in table])


def test_constants() -> None:
    assert {row["name"]: row["value"] for row in POLICY["constants"]} == CONSTANTS


@rows("pauses", lambda row: f"{row['told']} s after {row['refusals']}")
def test_pauses(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for chance, expected in ((min, row["least"]), (max, row["most"])):
        monkeypatch.setattr("random.uniform", lambda least, most, chance=chance: chance(least, most))
        pauses = Patience(Deadline(1e9))
        for _ in range(row["refusals"]):
            pauses.pause(errors.QueueFullError("full", retry_after=row["told"]))
        assert pauses.pause(errors.QueueFullError("full", retry_after=row["told"])) == pytest.approx(expected)


@rows("reasons", lambda row: str(row["reason"]))
def test_reasons(row: dict[str, Any]) -> None:
    error = error_of_reason(row["reason"], "it is so")
    assert error.reason == row["reason"]
    if not isinstance(error, (errors.LifecycleError, errors.SettingsError, errors.ClosedError)):
        # A daemon never sends the other codes, and a Python error has no code.
        assert code_of(error).name == row["code"]
    then = row["then"]
    if then in {"final", "retry"}:
        with pytest.raises(type(error)):
            step_after(error)
    error = error_of_reason(row["reason"], "it is so", retry_after=0.1)
    if then == "final":
        with pytest.raises(type(error)):
            step_after(error)
    elif then == "retry":
        assert isinstance(step_after(error), Sleep)
    elif then == "follow":
        with pytest.raises(type(error), match="it is so"):
            step_after(error, spawn=False)
        assert isinstance(step_after(error, 2), Ensure)
    else:
        health = step_after(error)
        assert isinstance(health, Send)
        assert health.method == "Health"


def step_after(error: errors.RunedError, number: int = 1, *, spawn: bool = True) -> object:
    """Return a step of a call whose first try failed."""
    flow = Flows(spawn=spawn, on_progress=None).embed("a", Options(), Deadline(60))
    next(flow)
    step: object = flow.throw(error)
    for _ in range(number - 1):
        step = flow.send(None)
    return step


@rows("codes", lambda row: f"{row['code']}{' with RetryInfo' if row['retry_info'] else ''}")
@pytest.mark.parametrize("reason", ["", "OF_NEXT_WEEK"])
def test_codes(row: dict[str, Any], reason: str) -> None:
    told: list[Message] = [ErrorInfo(domain="runed.v1", reason=reason)] if reason else []
    told += [RetryInfo(retry_delay=Duration(seconds=2))] if row["retry_info"] else []
    details = [{"type": it.DESCRIPTOR.full_name, "value": base64.b64encode(it.SerializeToString()).decode()} for it in told]
    error = error_of({"code": row["code"].lower(), "message": "it is so", "details": details})
    assert error.reason == (reason or row["reason"])
    assert error.retry_after == (2 if row["retry_info"] else None)
    if not (reason and row["code"] == "CANCELED"):  # whose class is the daemon's own, and found by the reason alone
        assert type(error) is type(error_of_reason(row["reason"], ""))


@rows("bootstrap", lambda row: str(row["name"]))
@pytest.mark.parametrize("call", ["info", "embedding"])
def test_bootstrap(row: dict[str, Any], call: str) -> None:
    client, expected = Flows(spawn=True, on_progress=None), row[call]
    flow = client.info(Deadline(60)) if call == "info" else client.embed_batch(["a"], Options(), Deadline(60))
    result = answered(flow, row)
    if "reason" in expected:
        assert isinstance(result, errors.RunedError)
        assert result.reason == expected["reason"]
        assert result.metadata == expected.get("metadata", {})
        assert all(number in result.message for number in result.metadata.values())
    elif call == "info":
        assert isinstance(result, runed.Info)
        assert result.vector_dim == expected["vector_dim"]
    else:
        assert isinstance(result, np.ndarray)


def answered(flow: Generator[Any, Any, object], row: dict[str, Any]) -> object:
    """Answer the steps of a flow like the daemon of a row. Return the flow's result or error."""
    infos, healths = list(row["infos"]), list(row["healths"])
    degraded = bool(healths) and healths[0]["status"] == "DEGRADED"
    answer: object = None
    while True:
        try:
            step = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
        except StopIteration as stop:
            return stop.value
        except errors.RunedError as error:
            return error
        match step:
            case Send(method="Info"):
                info = infos.pop(0) if len(infos) > 1 else infos[0]
                answer = error_of_reason(info, "it is so") if isinstance(info, str) else InfoResponse(vector_dim=info)
            case Send(method="Health"):
                answer = health_of(healths.pop(0) if healths else {"status": "OK"})
            case Send() if healths:
                answer = errors.BackendUnavailableError("not yet") if degraded else errors.BootstrappingError("not yet")
            case Send():
                answer = EmbedBatchResponse(embeddings=[EmbedResponse(vector=[1, 0])], fingerprint="f")
            case _:
                assert isinstance(step, Sleep)
                answer = None


def health_of(health: dict[str, Any]) -> HealthResponse:
    others = {name: health[name] for name in ("bytes_done", "bytes_total", "message") if name in health}
    return HealthResponse(status=f"STATUS_{health['status']}", phase=f"PHASE_{health.get('phase', 'UNSPECIFIED')}", **others)


@rows("room", lambda row: f"{row['call']} {sorted(row['options'])}")
def test_room(row: dict[str, Any]) -> None:
    client = Flows(spawn=True, on_progress=None)
    options, text = Options(**row["options"]), "x" * 2000
    info = InfoResponse(max_request_bytes=1000)
    if row["call"] == "embed_stream":
        request = EmbedStreamRequest()
        options.set_on(request)
        texts_of_stream: PendingTexts[int] = PendingTexts()
        texts_of_stream.add((0, text))
        texts_of_stream.next_message(1000 - request.ByteSize())
        outcome: object = texts_of_stream.ready[0][1]
    elif row["call"] == "embed_items":
        flow = client.embed_items([text], options, Deadline(60), with_route=False)
        next(flow)
        with pytest.raises(StopIteration) as stopped:
            flow.send(info)
        outcome = stopped.value.value[0]
    else:
        counted = client.count_tokens([text], options, Deadline(60))
        flow = counted if row["call"] == "count_tokens" else client.embed_batch([text], options, Deadline(60))  # type: ignore[assignment] # whichever
        next(flow)
        with pytest.raises(errors.RequestTooLargeError) as caught:
            flow.send(info)
        outcome = caught.value
    assert isinstance(outcome, errors.RequestTooLargeError)
    assert outcome.metadata["limit"] == str(row["room"])


@rows(
    "places", lambda row: json.dumps({name: row[name] for name in ("environment", "home", "socket_path") if name in row})[:80]
)
def test_places(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = pwd.getpwuid(os.getuid())

    def filled(text: str) -> str:
        return (
            text.replace("$own", own.pw_dir)
            .replace("$user", own.pw_name)
            .replace("$uid", str(os.getuid()))
            .replace("$here", str(tmp_path))
        )

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name == "HOME" or name.startswith("RUNED_")]:
        monkeypatch.delenv(name)
    for name, value in row["environment"].items():
        monkeypatch.setenv(name, filled(value))
    arguments = {"home": row.get("home"), "socket_path": row.get("socket_path")}
    if "reason" in row:
        with pytest.raises(errors.RunedError) as caught:
            Target.resolve(**arguments, spawn=True)
        assert caught.value.reason == row["reason"]
    else:
        assert str(Target.resolve(**arguments, spawn=True).socket) == filled(row["socket"])


def _lay(step: str, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    kind, name, *rest = step.split()
    path = home / name
    match kind:
        case "directory":
            path.mkdir()
            path.chmod(int(rest[0], 8))
        case "file":
            path.touch()
            path.chmod(int(rest[0] if rest else "600", 8))
        case "link":
            path.symlink_to(rest[0])
        case "owner":
            os.lchown(path, int(rest[0]), -1)
        case "group":
            os.lchown(path, -1, int(rest[0]))
        case "trust":
            monkeypatch.setenv("RUNED_TRUST_PARENTS", "1")
        case "switch":
            request.addfinalizer(partial(os.setegid, os.getegid()))
            os.setegid(int(rest[0]))


@rows("homes", lambda row: f"{', '.join(row['lay'])} {row.get('home', '')}")
def test_homes(row: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if any("12345" in step for step in row["lay"]) and os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    for step in row["lay"]:
        _lay(step, home, monkeypatch, request)
    place, ran = home / row.get("home", "home"), home / "ran"
    refused = row["reason"] == "FOREIGN_PATH"
    if refused and place.is_dir() and not os.path.lexists(place / "config.json"):
        program = home / "program"
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(0o755)
        (place / "config.json").write_text(json.dumps({"version": 1, "runed_binary": str(program)}))
    with pytest.raises(errors.RunedError) as caught, runed.connect(home=place, spawn=refused):
        pass
    assert caught.value.reason == row["reason"]
    assert "unsaid" not in row or row["unsaid"] not in caught.value.message
    assert not ran.exists()


@rows("dial", lambda row: str(row["found"]))
def test_dial(row: dict[str, Any], home: Path) -> None:
    path = home / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if "datagram" in row["found"] else socket.SOCK_STREAM) as found:
        match row["found"]:
            case "nothing":
                pass
            case "a file in place of the directory":
                (home / "file").touch()
                path = home / "file" / "s"
            case _:
                found.bind(str(path))
        with pytest.raises(errors.RunedError) as caught, runed.connect(socket_path=path) as client:
            client.health()
    assert caught.value.reason == row["reason"]


@rows("versions", lambda row: f"{row['daemon']} and {row['client']}")
def test_versions(row: dict[str, Any]) -> None:
    assert (_release(row["daemon"]) < _release(row["client"])) is row["older"]


# The rules


def test_each_rule_has_a_test() -> None:
    rules = [row["name"] for row in POLICY["rules"]["rows"] if "languages" not in row or "python" in row["languages"]]
    assert [rule for rule in rules if f"test_{rule.replace(' ', '_')}" not in globals()] == []


@contextmanager
def listening(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[Path]:
    """Listen on a socket, and answer each connection in a thread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(10)

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield path
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def full_backlog(path: Path) -> Iterator[socket.socket]:
    """Listen on a socket whose queue of connections is full. Yield the listening socket."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield listener


def test_a_full_backlog(home: Path) -> None:
    with full_backlog(home / "s"), runed.connect(socket_path=home / "s") as client:
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError):
            client.embed("a", timeout=0.3)
        assert time.monotonic() - began >= 0.3


def test_one_time_limit(home: Path) -> None:
    def hang_up_on_one() -> None:
        listener.accept()[0].close()

    with full_backlog(home / "s") as listener, runed.connect(socket_path=home / "s") as client:
        accepting = threading.Timer(3, hang_up_on_one)
        accepting.start()
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError, match=r"within 4 s"):
            client.embed("a", timeout=4)
        assert 4 <= time.monotonic() - began < 6.9
        accepting.join()


@needs_root
def test_another_user_listens(home: Path) -> None:
    with listening_as_other(home / "s") as other:
        with pytest.raises(errors.ForeignPathError, match=f"belongs to user id {OTHER}"):
            runed.connect(socket_path=home / "s")
        assert other.heard() == [0]


def test_a_daemon_that_is_lost_again() -> None:
    flow = Flows(spawn=True, on_progress=None).embed("a", Options(), Deadline(60))
    lost = errors.DaemonUnavailableError("it is gone")
    for _ in range(daemon_flows._MAX_RETRIES):
        assert isinstance(flow.send(None), Send)
        assert isinstance(flow.throw(lost), Sleep)
        assert isinstance(flow.send(None), Ensure)
    assert isinstance(flow.send(None), Send)
    with pytest.raises(errors.DaemonUnavailableError, match="it is gone"):
        flow.throw(lost)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\nshort"])
def test_a_lost_answer(home: Path, answer: bytes) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with (
        listening(home / "s", break_off) as path,
        runed.connect(socket_path=path) as client,
        pytest.raises(errors.DaemonUnavailableError) as caught,
    ):
        client.embed("a")
    assert caught.value.reason == "DAEMON_UNAVAILABLE"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_another_program(home: Path, status: str) -> None:
    def greet(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\nhello".encode())

    with (
        listening(home / "s", greet) as path,
        runed.connect(socket_path=path) as client,
        pytest.raises(errors.RunedError) as caught,
    ):
        client.embed("a")
    assert caught.value.reason == "INTERNAL"


def test_an_answer_without_a_vector() -> None:
    client = Flows(spawn=True, on_progress=None)
    single = client.embed("a", Options(), Deadline(60))
    next(single)
    with pytest.raises(errors.BackendFaultError):
        single.send(EmbedResponse())
    several: list[list[list[float]]] = [[[]], [[1.0, 0.0], [1.0]]]
    for vectors in several:
        batch = Flows(spawn=True, on_progress=None).embed_batch(["a"] * len(vectors), Options(), Deadline(60))
        next(batch)
        batch.send(InfoResponse())
        with pytest.raises(errors.BackendFaultError):
            batch.send(EmbedBatchResponse(embeddings=[EmbedResponse(vector=vector) for vector in vectors]))


def test_an_error_of_one_text() -> None:
    with runed.testing.daemon() as daemon, runed.connect(home=daemon.home) as client:
        daemon.fail("bad", errors.BackendUnavailableError("no engine", retry_after=0.01))
        outcomes = dict(client.embed_stream([(1, "good"), (2, "bad")]))
        assert isinstance(outcomes[1], runed.Embedding)
        assert isinstance(outcomes[2], errors.BackendUnavailableError)
        assert isinstance(client.embed_items(["bad"])[0], errors.BackendUnavailableError)
        assert sum(call.texts.count("bad") for call in daemon.calls) == 2


def test_a_successor_with_smaller_limits() -> None:
    flow = Flows(spawn=True, on_progress=None)
    assert sizes_of_requests(flow, InfoResponse(max_batch_size=10)) == [5]
    assert sizes_of_requests(flow, InfoResponse(max_batch_size=2)) == [5, 2, 2, 1]
    assert sizes_of_requests(flow, InfoResponse(max_batch_size=2)) == [2, 2, 1]
    assert sizes_of_requests(flow, InfoResponse(max_request_bytes=20, max_batch_size=2)) == [2, 2, 1], "they are asked for once"


def test_a_successor_with_larger_limits() -> None:
    client = Flows(spawn=True, on_progress=None)
    assert sizes_of_requests(client, InfoResponse(max_batch_size=2)) == [2, 2, 1]
    flow = client.embed("a", Options(), Deadline(60))
    assert isinstance(next(flow), Send)
    assert isinstance(flow.throw(errors.ShuttingDownError("it drains")), Sleep)
    assert isinstance(flow.send(None), Ensure)
    flow.close()
    assert sizes_of_requests(client, InfoResponse(max_batch_size=10)) == [5]


def sizes_of_requests(client: Flows, limits: InfoResponse) -> list[int]:
    """Return how many texts each request has by which a batch of five comes through to a daemon of these limits."""
    flow = client.embed_batch(["a"] * 5, Options(), Deadline(60))
    sizes: list[int] = []
    answer: object = None
    while True:
        try:
            step = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
        except StopIteration:
            return sizes
        assert isinstance(step, Send)
        if isinstance(step.request, EmbedBatchRequest):
            sizes.append(len(step.request.texts))
            if sizes[-1] > limits.max_batch_size:
                answer = errors.BatchTooLargeError("too many texts")
            else:
                answer = EmbedBatchResponse(embeddings=[EmbedResponse(vector=[1])] * sizes[-1], fingerprint="f")
        else:
            answer = limits


def stream_of_one_text(flows: Flows) -> Generator[Any, Any, object]:
    pending, flow = stream_flow(flows, Options(), 60)
    pending.add((1, "a"))
    return flow


def looks(step: object) -> bool:
    """Return whether a step looks at Health."""
    return isinstance(step, Send) and step.method == "Health"


@pytest.mark.parametrize(
    "call",
    [
        lambda flows: flows.embed("a", Options(), Deadline(60)),
        lambda flows: flows.embed_batch(["a"], Options(), Deadline(60)),
        lambda flows: flows.info(Deadline(60)),
        lambda flows: flows.wait_until_ready(Deadline(60)),
        lambda flows: flows.warm_up(Deadline(60)),
        lambda flows: set_centroids_flow(flows, [[1.0, 0.0]], "", "", Deadline(60)),
        stream_of_one_text,
    ],
    ids=["embed", "embed_batch", "info", "wait_until_ready", "warm_up", "set_centroids", "embed_stream"],
)
def test_the_progress_of_a_start(call: Callable[[Flows], Generator[Any, Any, object]]) -> None:
    told: list[runed.Health] = []
    client = Flows(spawn=True, on_progress=told.append)
    loading, ready = health_of({"status": "LOADING", "message": "looking for engine and model"}), health_of({"status": "OK"})
    flow = call(client)
    for health in (loading, loading, ready):
        assert looks(next(flow))
        assert isinstance(flow.send(health), Sleep)
    assert not looks(next(flow))
    assert [(health.status, health.message) for health in told] == [
        (runed.Status.LOADING, "looking for engine and model"),
        (runed.Status.OK, ""),
    ]
    assert not looks(next(call(client))), "it looks again"
    assert not looks(next(call(Flows(spawn=True, on_progress=None)))), "nobody wants to know"

    flow = client.embed("a", Options(), Deadline(60))
    next(flow)
    assert isinstance(flow.throw(errors.ShuttingDownError("it drains")), Sleep)
    assert isinstance(flow.send(None), Ensure)
    flow.close()
    flow = call(client)
    assert looks(next(flow)), "it does not look at the successor"
    assert not looks(flow.send(ready))
    assert len(told) == 2, "it told of a daemon that does not load"

    flow = call(Flows(spawn=True, on_progress=told.append))
    next(flow)
    with pytest.raises(errors.DeadlineExceededError) as caught:
        flow.throw(errors.DeadlineExceededError("too late"))
    assert "not ready yet" not in caught.value.message, "it knows nothing of the daemon"


NAMED_CALLS: dict[str, Callable[[runed.Client], object]] = {
    "info": lambda client: client.info(model="m"),
    "wait_until_ready": lambda client: client.wait_until_ready(model="m"),
    "health": lambda client: client.health(model="m"),
    "warm_up": lambda client: client.warm_up(model="m"),
    "embed": lambda client: client.embed("a", model="m"),
    "embed_batch": lambda client: client.embed_batch(["a"], model="m"),
    "embed_items": lambda client: client.embed_items(["a"], model="m"),
    "embed_stream": lambda client: list(client.embed_stream([(1, "a")], model="m")),
    "count_tokens": lambda client: client.count_tokens(["a"], model="m"),
    "rerank": lambda client: client.rerank("a", ["a"], model="m"),
    "set_centroids": lambda client: client.set_centroids([[1.0] * 8], model="m"),
}


@pytest.mark.parametrize("name", NAMED_CALLS)
def test_the_model_of_a_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(method: str) -> None:
        answer = getattr(daemon, method)

        def noted(model: str = "", **details: bool) -> object:
            asked.append(model)
            return answer(model, **details)

        monkeypatch.setattr(daemon, method, noted)

    with (
        runed.testing.daemon(models=("double", "m")) as daemon,
        runed.connect(home=daemon.home, on_progress=lambda _: None) as client,
    ):
        note("info")
        note("health")
        if name not in {"info", "wait_until_ready", "health"}:
            daemon.refuse(errors.BootstrappingError("not yet"))
        NAMED_CALLS[name](client)
    assert set(asked) == {"m"}


@pytest.mark.parametrize("name", sorted(NAMED_CALLS.keys() - {"embed_stream", "set_centroids"}))
def test_a_daemon_with_one_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Message] = {
        "Info": InfoResponse(vector_dim=2),
        "Health": HealthResponse(status="STATUS_OK"),
        "WarmUp": WarmUpResponse(),
        "Embed": EmbedResponse(vector=[1, 0], fingerprint="fp"),
        "EmbedBatch": EmbedBatchResponse(embeddings=[EmbedResponse(vector=[1, 0])], fingerprint="fp"),
        "CountTokens": CountTokensResponse(token_counts=[1]),
    }

    def perform(step: Send) -> object:
        if step.method not in told:
            raise errors.UnimplementedError("there is no such method")
        return told[step.method]

    with runed.testing.daemon() as daemon, runed.connect(home=daemon.home) as client:
        monkeypatch.setattr(client._transport, "perform", perform)
        with pytest.raises(errors.UnimplementedError):
            NAMED_CALLS[name](client)
        assert client.health(model="").status is runed.Status.OK
        client.warm_up()


def test_a_refusal_to_the_end() -> None:
    flow = Flows(spawn=True, on_progress=None).embed("a", Options(), Deadline(60))
    next(flow)
    flow.throw(errors.QueueFullError("full", retry_after=0.02))
    flow.send(None)
    with pytest.raises(errors.QueueFullError, match=r"^full \(tried 2 times in \d\.\d s\)$"):
        flow.throw(errors.DeadlineExceededError("too late"))


async def test_an_idle_stream(home: Path) -> None:
    given = asyncio.Event()
    outcomes: dict[int, object] = {}
    with ExitStack() as daemons:
        daemons.enter_context(runed.testing.daemon(home))

        async def items() -> AsyncIterator[tuple[int, str]]:
            yield 1, "a"
            await given.wait()
            await asyncio.to_thread(daemons.close)
            daemons.enter_context(runed.testing.daemon(home))
            yield 2, "b"

        async with runed.connect_async(socket_path=home / "embedding.sock") as client:
            async for key, outcome in client.embed_stream(items()):
                outcomes[key] = type(outcome)
                given.set()
    assert outcomes == {1: runed.Embedding, 2: runed.Embedding}


def test_a_silent_stream(home: Path) -> None:
    stop = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        data = connection.recv(65536)
        if data.startswith(b"PRI"):
            stop.wait(60)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n")

    with listening(home / "s", say_nothing) as path, runed.connect(socket_path=path) as client:
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError, match=r"no embedding of the stream came within 0\.3 s"):
            list(client.embed_stream([(1, "a")], timeout=0.3))
        assert time.monotonic() - began < 20
        stop.set()


def test_a_home_in_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNED_HOME", os.fsdecode(b"/h\xff"))
    with pytest.raises(errors.SettingsError, match=r"the home '/h\\udcff' is not UTF-8"):
        Target.resolve(home=None, socket_path=None, spawn=True)


async def test_many_calls_at_once(home: Path) -> None:
    blocked = asyncio.Event()
    now = peak = 0
    message = EmbedResponse(vector=[1.0, 0.0]).SerializeToString()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: {len(message)}\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        while await reader.read(65536):
            await blocked.wait()
            writer.write(head + message)
        now -= 1
        writer.close()

    def call_from_threads() -> int:
        with runed.connect(socket_path=path) as client, ThreadPoolExecutor(150) as threads:
            return len(list(threads.map(lambda _: client.embed("text"), range(300))))

    path = home / "s"
    async with await asyncio.start_unix_server(answer, path):
        async with runed.connect_async(socket_path=path) as client:
            calls = [asyncio.create_task(client.embed("text")) for _ in range(700)]
            while now < slots.MAX_CONNECTIONS:  # noqa: ASYNC110 # no event tells it
                await asyncio.sleep(0.001)
            with pytest.raises(errors.DeadlineExceededError):
                await client.embed("late", timeout=0.1)
            blocked.set()
            assert len(await asyncio.gather(*calls)) == 700
        assert await asyncio.to_thread(call_from_threads) == 300
    assert peak == slots.MAX_CONNECTIONS


def test_a_closed_client() -> None:
    with runed.testing.daemon() as daemon:
        client = runed.connect(home=daemon.home)
        client.close()
        with pytest.raises(errors.ClosedError) as caught:
            client.embed("a")
    assert caught.value.reason == "CLOSED"
