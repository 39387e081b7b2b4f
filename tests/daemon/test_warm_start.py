"""A start with everything installed answers the first call; only a download refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from runed_proto.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from runed_proto.runed.v1 import runed_pb2 as pb

import runed
from runed.lifecycle.asking import look
from runed.lifecycle.listener import probe
from runed.locking import LockFile
from runed.paths import Paths
from tests.bootstrap.parts import Release, archive
from tests.bootstrap.site import Exchange, running_site
from tests.support import RunningDaemon, clean_environment, http_over, refusal_of_json, wait_until

StartDaemon = Callable[..., RunningDaemon]

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class SlowEngine:
    """The real engine with a slow `--version`, which takes a second and waits for the test's permission.

    Every bootstrap asks for the version, and takes as long.
    """

    script: str
    gate: Path

    @classmethod
    def of(cls, llama_server: Path, gate: Path) -> SlowEngine:
        wait = f'[ "$1" = --version ] && sleep 1 && while [ ! -e {shlex.quote(str(gate))} ]; do sleep 0.02; done'
        return cls(f'#!/bin/sh\n{wait}\nexec {shlex.quote(str(llama_server))} "$@"\n', gate)

    def go_on(self) -> None:
        self.gate.touch()


@pytest.fixture
def slow(llama_server: Path, tmp_path: Path) -> Iterator[SlowEngine]:
    engine = SlowEngine.of(llama_server, tmp_path / "gate")
    yield engine
    engine.go_on()


@pytest.fixture
def own(slow: SlowEngine, tiny_qwen3: Path, tmp_path: Path) -> dict[str, str]:
    """The settings of a home with the user's own engine and model. The engine is slow."""
    program = tmp_path / "llama-server"
    program.write_text(slow.script)
    program.chmod(0o755)
    return {"RUNED_LLAMA_SERVER": str(program), "RUNED_MODEL": str(tiny_qwen3)}


@pytest.fixture
def release(slow: SlowEngine, tiny_qwen3: Path) -> Iterator[Release]:
    """A site with the slow engine and a small model."""
    with running_site() as site:
        engine = archive(("llama-b1/llama-server", slow.script))
        yield Release(site, engine=engine, models={"tiny": tiny_qwen3.read_bytes()})


@pytest.fixture
def installed(home: Path, release: Release, slow: SlowEngine) -> dict[str, str]:
    """The settings of a home in which the release is installed. The engine is slow from now on."""
    manifest = home / "manifest.json"
    release.publish()
    document = release.document()
    document["platforms"] = {
        name: {"llama_server": platform["llama_server"] | {"url": f"{release.site.url}/engine.tar.gz"}}
        for name, platform in document["platforms"].items()
    }
    document["models"]["tiny"]["url"] = f"{release.site.url}/models/tiny.gguf"
    manifest.write_text(json.dumps(document))
    settings = {"RUNED_LLAMA_SERVER": "", "RUNED_MODEL": "", "RUNED_MANIFEST": str(manifest)}
    slow.go_on()
    subprocess.run(
        [sys.executable, "-m", "runed", "install"],
        env=clean_environment(RUNED_HOME=str(home), **settings),
        check=True,
        capture_output=True,
        timeout=60,
    )
    slow.gate.unlink()
    return settings


@pytest.fixture
def start_slowly(installed: dict[str, str], start_daemon: StartDaemon) -> StartDaemon:
    """Start daemons in the home, and return them when they listen."""

    def start(**env: str) -> RunningDaemon:
        return listening(start_daemon(**(installed | env)))

    return start


def listening(daemon: RunningDaemon) -> RunningDaemon:
    wait_until(lambda: daemon.socket.exists() and probe(daemon.socket), what="the socket")
    return daemon


def stream(daemon: RunningDaemon, texts: list[str], timeout: float = 60) -> list[pb.EmbedStreamResponse]:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/runed.v1.RunedService/EmbedStream")
        items = [pb.EmbedStreamItem(id=text, text=text) for text in texts]
        request = pb.EmbedStreamRequest(items=items).SerializeToString()
        return [pb.EmbedStreamResponse.FromString(answer) for answer in stub(iter([request]), timeout=timeout)]


def push(daemon: RunningDaemon) -> pb.SetCentroidsResponse:
    centroid = pb.Centroid(id=0, vec=[1.0] * 64)
    parts = [
        pb.SetCentroidsRequest(header=pb.CentroidSetHeader(dim=64, nlist=1)),
        pb.SetCentroidsRequest(batch=pb.CentroidBatch(centroids=[centroid])),
    ]
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/runed.v1.RunedService/SetCentroids")
        return pb.SetCentroidsResponse.FromString(stub((part.SerializeToString() for part in parts), timeout=60))


def openai(daemon: RunningDaemon, body: dict[str, Any]) -> httpx.Response:
    with daemon.http(timeout=60) as http:
        return http.post("/v1/embeddings", json=body)


def first_model(daemon: RunningDaemon) -> str:
    with daemon.http(timeout=2) as http:
        return str(http.get("/v1/models").json()["data"][0]["id"])


def check(daemon: RunningDaemon) -> int:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        return HealthCheckResponse.FromString(stub(HealthCheckRequest().SerializeToString(), timeout=10)).status


def drip(exchange: Exchange) -> None:
    """Send some bytes twice, so far apart that progress is reported, and the rest when the site is released."""
    body = exchange.begin()
    exchange.wfile.write(body[:50_000])
    time.sleep(0.5)
    exchange.wfile.write(body[50_000:100_000])
    exchange.site.released.wait(60)
    exchange.wfile.write(body[100_000:])


def in_flight(daemon: RunningDaemon) -> int:
    return int(daemon.health().get("inFlightRequests", "0"))


def waiting(pool: ThreadPoolExecutor, daemon: RunningDaemon, method: str = "Embed") -> Future[dict[str, Any]]:
    """Begin a call, and check that it waits."""
    call = pool.submit(daemon.call, method, {"text": "hello"}, timeout=60)
    wait_until(lambda: in_flight(daemon) == 1, what="the call in flight")
    assert not call.done()
    return call


# The sequence of README


@pytest.mark.parametrize("what", ["own", "installed"])
def test_first_call_after_ensure_is_answered(what: str, request: pytest.FixtureRequest, home: Path, slow: SlowEngine) -> None:
    settings: dict[str, str] = request.getfixturevalue(what)
    slow.go_on()
    env = clean_environment(RUNED_HOME=str(home), **settings)

    def run(command: str) -> None:
        subprocess.run([sys.executable, "-m", "runed", command], env=env, capture_output=True, check=True, timeout=60)

    run("ensure")
    try:
        for first in ("Embed", "Info"):
            run("stop")
            run("ensure")
            with http_over(home / "embedding.sock") as http:
                answer = http.post(f"/runed.v1.RunedService/{first}", json={"text": "tea"} if first == "Embed" else {}).json()
            if first == "Embed":
                assert len(answer["vector"]) == 64
            else:
                assert (answer["vectorDim"], answer["maxTextLength"]) == (64, 2047)
    finally:
        run("stop")


# While nothing has to be downloaded


def test_every_call_waits_until_engine_and_model_are_found(start_slowly: StartDaemon, slow: SlowEngine) -> None:
    daemon = start_slowly()
    with ThreadPoolExecutor(16) as pool:
        calls: dict[str, Future[Any]] = {
            "Embed": pool.submit(daemon.call, "Embed", {"text": "hello"}),
            "EmbedBatch": pool.submit(daemon.call, "EmbedBatch", {"texts": ["hello"]}),
            "CountTokens": pool.submit(daemon.call, "CountTokens", {"texts": ["hello"]}),
            "Info": pool.submit(daemon.call, "Info"),
            "EmbedStream": pool.submit(stream, daemon, ["hello"]),
            "SetCentroids": pool.submit(push, daemon),
            "embeddings": pool.submit(openai, daemon, {"input": "hello"}),
        }
        wait_until(lambda: in_flight(daemon) == 4, what="the embeddings in flight")
        time.sleep(0.3)
        assert not [name for name, call in calls.items() if call.done()]
        assert first_model(daemon) == "tiny", "a list needs no engine"
        assert (check(daemon), daemon.health()["status"]) == (SERVING, "STATUS_LOADING")
        slow.go_on()
        answers = {name: call.result(30) for name, call in calls.items()}
    assert len(answers["Embed"]["vector"]) == len(answers["EmbedBatch"]["embeddings"][0]["vector"]) == 64
    assert len(answers["CountTokens"]["tokenCounts"]) == 1
    assert answers["Info"]["vectorDim"] == 64
    assert [result.id for answer in answers["EmbedStream"] for result in answer.results] == ["hello"]
    assert answers["SetCentroids"].nlist == 1
    assert len(answers["embeddings"].json()["data"]) == 1
    assert in_flight(daemon) == 0


@pytest.mark.parametrize("call", ["embed", "wait_until_ready"])
def test_client_that_waits_tells_its_progress(start_slowly: StartDaemon, slow: SlowEngine, call: str) -> None:
    daemon = start_slowly()
    told: list[runed.Health] = []
    with runed.connect(home=daemon.home, spawn=False, on_progress=told.append) as client, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.embed, "hello") if call == "embed" else pool.submit(client.wait_until_ready)
        wait_until(lambda: told, what="the progress")
        assert not waits.done()
        slow.go_on()
        waits.result(30)
    assert told[0].message == "looking for engine and model"


def test_status_does_not_contradict_itself(start_slowly: StartDaemon, slow: SlowEngine) -> None:
    daemon = start_slowly()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look, Paths(daemon.home), timeout=60)
        time.sleep(0.5)
        slow.go_on()
        info, health = looking.result(30)
    assert info.vector_dim == 64
    assert health.phase in {None, "STARTING_LLAMA_SERVER"}


def test_health_of_grpc_is_serving_all_the_time(start_slowly: StartDaemon, slow: SlowEngine) -> None:
    daemon = start_slowly()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        states = (HealthCheckResponse.FromString(answer).status for answer in stub(b"", timeout=60))
        assert next(states) == SERVING
        slow.go_on()
        daemon.wait_for("STATUS_OK")
        assert daemon.stop() == 0
        assert list(states) == [NOT_SERVING]  # the drain; every change before would be told, too


def test_call_waits_no_longer_than_its_deadline(start_slowly: StartDaemon) -> None:
    daemon = start_slowly()
    headers = {"connect-timeout-ms": "500"}
    with daemon.http() as http:
        late = http.post("/runed.v1.RunedService/Embed", json={"text": "hello"}, headers=headers).json()
        began = time.monotonic()
        info = http.post("/runed.v1.RunedService/Info", json={}, headers=headers).json()
        waited = time.monotonic() - began
    assert refusal_of_json(late).reason == "DEADLINE_EXCEEDED"
    assert in_flight(daemon) == 0
    assert info["daemonVersion"], "Info answers in time with what is known"
    assert "vectorDim" not in info
    assert waited >= 0.3


def test_caller_that_goes_leaves_nothing_behind(start_slowly: StartDaemon, slow: SlowEngine) -> None:
    daemon = start_slowly()
    with pytest.raises(httpx.ReadTimeout), daemon.http(timeout=0.5) as http:
        http.post("/runed.v1.RunedService/Embed", json={"text": "hello"})
    with pytest.raises(httpx.ReadTimeout), daemon.http(timeout=0.5) as http:
        http.post("/v1/embeddings", json={"input": "hello"})
    with pytest.raises(grpc.RpcError):
        stream(daemon, ["hello"], timeout=0.5)
    wait_until(lambda: in_flight(daemon) == 0, timeout=3, what="the end of the calls that nobody waits for")
    assert daemon.health()["status"] == "STATUS_LOADING", "they ended before the wait did"
    slow.go_on()
    assert daemon.wait_for("STATUS_OK").get("totalTexts", "0") == "0"
    assert daemon.stop() == 0


def test_failure_is_told_to_the_calls_that_wait(
    start_slowly: StartDaemon, slow: SlowEngine, home: Path, tiny_qwen3: Path
) -> None:
    model = home / "cut.gguf"
    model.write_bytes(tiny_qwen3.read_bytes()[:300_000])
    daemon = start_slowly(RUNED_MODEL=str(model))
    with ThreadPoolExecutor() as pool:
        call = waiting(pool, daemon)
        slow.go_on()
        refusal = refusal_of_json(call.result(30))
        assert (refusal.code, refusal.reason) == ("unavailable", "BACKEND_UNAVAILABLE")
        assert "cut.gguf" in refusal.message
        assert refusal.retry_seconds is None, "only the user can mend this"
    assert first_model(daemon) == "cut"
    assert daemon.health()["status"] == "STATUS_DEGRADED"


def test_drain_refuses_the_calls_that_wait(start_slowly: StartDaemon) -> None:
    daemon = start_slowly()
    with ThreadPoolExecutor() as pool:
        call = waiting(pool, daemon)
        info = pool.submit(daemon.call, "Info")
        time.sleep(0.2)
        began = time.monotonic()
        assert daemon.call("Shutdown", {"graceSeconds": 60}) == {"accepted": True}
        assert refusal_of_json(call.result(30)).reason == "SHUTTING_DOWN"
        assert "vectorDim" not in info.result(30)
    assert daemon.process.wait(30) == 0
    assert time.monotonic() - began < 10, "nobody waited for the grace"


# Once something has to be downloaded


def test_download_refuses_the_calls_that_wait_and_tells_its_bytes(
    home: Path, release: Release, slow: SlowEngine, start_slowly: StartDaemon
) -> None:
    model = Paths(home).model("tiny")
    size = model.stat().st_size
    model.unlink()
    release.site.always["/models/tiny.gguf"] = drip
    daemon = start_slowly()
    with ThreadPoolExecutor() as pool:
        call = waiting(pool, daemon)
        assert check(daemon) == SERVING
        slow.go_on()
        refusal = refusal_of_json(call.result(30))
    assert (refusal.code, refusal.reason) == ("failed_precondition", "BOOTSTRAPPING")
    assert f"of {size:,} bytes" in refusal.message
    assert refusal.retry_seconds is not None
    assert check(daemon) == NOT_SERVING
    assert "vectorDim" not in daemon.call("Info", timeout=5)
    assert first_model(daemon) == "tiny"
    wait_until(lambda: int(daemon.health().get("bytesDone", "0")) > 0, what="the first bytes")
    later = refusal_of_json(daemon.call("Embed", {"text": "hello"}, timeout=5))
    assert f", 0 of {size:,} bytes" not in later.message
    assert f"of {size:,} bytes" in later.message
    release.site.released.set()
    daemon.wait_for("STATUS_OK")
    assert len(daemon.call("Embed", {"text": "hello"})["vector"]) == 64
    assert check(daemon) == SERVING


def test_install_of_another_process_refuses(home: Path, slow: SlowEngine, start_slowly: StartDaemon) -> None:
    slow.go_on()
    Paths(home).model("tiny").unlink()
    with LockFile(Paths(home).install_lock) as lock:
        assert lock.try_acquire()
        daemon = start_slowly()
        wait_until(lambda: "waiting for process" in daemon.health().get("message", ""), what="the wait for the other process")
        refusal = refusal_of_json(daemon.call("Embed", {"text": "hello"}, timeout=5))
        assert (refusal.reason, check(daemon)) == ("BOOTSTRAPPING", NOT_SERVING)
    daemon.wait_for("STATUS_OK")
