"""Health and reflection of the real daemon in every state: without an engine, with a suspended engine, and in a drain."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from runed_proto.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from runed_proto.grpc.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.support import RunningDaemon, process_gone, wait_until

StartDaemon = Callable[..., RunningDaemon]

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


class SideClient:
    """A gRPC client of the side services, on one connection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._questions: queue.SimpleQueue[ServerReflectionRequest] = queue.SimpleQueue()
        self._check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        self._watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        reflect = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        self._answers = reflect(iter(self._questions.get, None), timeout=60)

    def check(self) -> int:
        """Ask for the state of the embedding service."""
        return self._check(HealthCheckRequest(service="runed.v1.RunedService"), timeout=10).status

    def watch(self) -> Iterator[int]:
        """Watch the whole server."""
        return (answer.status for answer in self._watch(HealthCheckRequest(), timeout=60))

    def services(self) -> int:
        """Ask for the services, and return their number."""
        self._questions.put(ServerReflectionRequest(list_services=""))
        return len(next(self._answers).list_services_response.service)

    def reflection_ended_well(self) -> bool:
        """Wait for the end of the stream, and return whether it ended without an error."""
        return list(self._answers) == [] and self._answers.code() is grpc.StatusCode.OK


@contextmanager
def side_client(daemon: RunningDaemon) -> Iterator[SideClient]:
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=_OPTIONS) as channel:
        yield SideClient(channel)


def run_cli(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `runed` for the daemon's home, with its settings."""
    command = [sys.executable, "-m", "runed", *arguments]
    return subprocess.run(command, env=daemon.environment, capture_output=True, text=True, check=True, timeout=60)


@pytest.fixture
def silent_site() -> Iterator[str]:
    """The URL of a manifest that is never sent."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/manifest.json"


def test_while_bootstrapping(home: Path, silent_site: str) -> None:
    daemon = RunningDaemon(home, {"RUNED_MANIFEST": silent_site})
    try:
        daemon.wait_for("STATUS_LOADING")
        with side_client(daemon) as client:
            assert client.check() == NOT_SERVING
            assert client.services() == 4
            watch = client.watch()
            assert next(watch) == NOT_SERVING
            assert daemon.stop() == 0
            assert list(watch) == []
    finally:
        daemon.close()


def test_while_idle_wakes_nobody_and_keeps_nobody_awake(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="700ms")
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    with side_client(daemon) as client:
        watch = client.watch()
        assert next(watch) == SERVING

        def asleep() -> bool:
            assert (client.check(), client.services()) == (SERVING, 4)
            return bool(daemon.health()["status"] == "STATUS_IDLE")

        wait_until(asleep, timeout=10, what="idleness in spite of Check, Watch and reflection")
        assert process_gone(engine)
        assert (client.check(), client.services()) == (SERVING, 4)
        health = daemon.health()
        assert health["status"] == "STATUS_IDLE"
        assert health.get("totalRequests", "0") == health.get("inFlightRequests", "0") == "0"
        daemon.call("Embed", {"text": "hello"})  # wakes the engine
        assert daemon.stop() == 0
        assert list(watch) == [NOT_SERVING], "a service that sleeps or wakes is SERVING all the time"


def test_while_draining(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    texts = [f"text number {number} of a call that takes long, so that there is time to look around" for number in range(600)]
    with side_client(daemon) as client, ThreadPoolExecutor() as pool:
        watch = client.watch()
        assert next(watch) == SERVING
        assert client.services() == 4
        call = pool.submit(daemon.call, "EmbedBatch", {"texts": texts}, timeout=60)
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        assert daemon.call("Shutdown", {"graceSeconds": 60}) == {"accepted": True}
        assert list(watch) == [NOT_SERVING]
        assert client.services() == 4
        with side_client(daemon) as newcomer:
            assert (newcomer.check(), newcomer.services(), list(newcomer.watch())) == (NOT_SERVING, 4, [NOT_SERVING])
        assert daemon.call("Embed", {"text": "too late"})["code"] == "unavailable"
        health = daemon.health()
        assert (health["status"], health["inFlightRequests"]) == ("STATUS_SHUTTING_DOWN", "1")
        assert "shutting down" in run_cli(daemon, "status").stdout
        ensured = pool.submit(run_cli, daemon, "ensure", "--json")
        assert not call.done()
        assert len(call.result(60)["embeddings"]) == 600
        assert client.reflection_ended_well()
    assert daemon.process.wait(30) == 0
    successor = json.loads(ensured.result(60).stdout)
    assert successor["started"]
    assert successor["pid"] != daemon.process.pid
    assert run_cli(daemon, "stop").returncode == 0
    assert process_gone(successor["pid"])
