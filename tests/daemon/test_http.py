"""A real daemon with a loopback port: its vectors are the same as over the socket, and the port closes with the daemon."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import pytest
from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest, EmbedBatchResponse

from runed.lifecycle.record import DaemonRecord
from tests.support import RunningDaemon, call, clean_environment, running_daemon, wait_until

TEXTS = ["a cat sat on the mat", "le chat", "Stromausfall in der Nacht", "zweihundert " * 30]


@pytest.fixture(scope="module")
def daemon(llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    """One daemon for all tests that do not change it."""
    with running_daemon(llama_server, tiny_qwen3, RUNED_HTTP="127.0.0.1:0") as daemon:
        yield daemon


def url_of(daemon: RunningDaemon) -> str:
    record = DaemonRecord.read(daemon.home / "daemon.json")
    assert record is not None
    return record.http


def over_tcp(daemon: RunningDaemon) -> httpx.Client:
    token = (daemon.home / "http.token").read_text().strip()
    return httpx.Client(base_url=url_of(daemon), headers={"authorization": f"Bearer {token}"}, timeout=30)


@pytest.mark.parametrize("dimensions", [0, 32])
@pytest.mark.parametrize("way", ["socket", "port"])
def test_vectors_and_tokens_are_those_of_the_rpc(way: str, dimensions: int, daemon: RunningDaemon) -> None:
    rpc = cast(
        "EmbedBatchResponse",
        call("grpc", daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=TEXTS, dimensions=dimensions)).message,
    )
    expected = [np.array(item.vector, "<f4") for item in rpc.embeddings]
    body: dict[str, object] = {"input": TEXTS, "model": ""} | ({"dimensions": dimensions} if dimensions else {})
    with daemon.http() if way == "socket" else over_tcp(daemon) as http:
        floats = http.post("/v1/embeddings", json=body).json()
        encoded = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
        info = daemon.call("Info")
        assert floats["model"] == encoded["model"] == http.get("/v1/models").json()["data"][0]["id"] == info["model"]
    for vector, item, raw in zip(expected, floats["data"], encoded["data"], strict=True):
        assert np.array_equal(np.array(item["embedding"]).astype("<f4"), vector)
        assert base64.b64decode(raw["embedding"]) == vector.tobytes()
        assert float(vector @ np.array(item["embedding"])) == pytest.approx(1, abs=1e-6)
    tokens = sum(int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"])
    assert floats["usage"] == encoded["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_port_file_and_log_are_as_private_as_they_must_be(daemon: RunningDaemon) -> None:
    token = (daemon.home / "http.token").read_text().strip()
    assert stat.S_IMODE((daemon.home / "http.token").stat().st_mode) == 0o600
    text = "a text that nobody logs: aardvark"
    with over_tcp(daemon) as http:
        assert http.post("/v1/embeddings", json={"input": [text, ""]}).status_code == 400
        assert http.post("/v1/embeddings", json={"input": text}).status_code == 200
    with httpx.Client(base_url=url_of(daemon)) as http:
        assert http.post("/v1/embeddings", json={"input": text}).status_code == 401
    assert "aardvark" not in daemon.log()
    assert token not in daemon.log()

    def codes() -> list[str]:
        lines = (line for line in daemon.log_lines() if line["message"] == "embedding call" and line["method"] == "OpenAI")
        return [line["code"] for line in lines]

    # The line of a call that succeeded is written soon.
    wait_until(lambda: codes()[-2:] == ["invalid_argument", "ok"], what="the lines of both calls")
    [serving] = (line for line in daemon.log_lines() if line["message"] == "serving")
    assert serving["http"] == url_of(daemon)


def test_calls_are_counted_like_any_other(daemon: RunningDaemon) -> None:
    before = int(daemon.health()["totalRequests"])
    with over_tcp(daemon) as http:
        http.post("/v1/embeddings", json={"input": "counted"})
    assert int(daemon.health()["totalRequests"]) == before + 1


def test_status_tells_url_and_token(daemon: RunningDaemon) -> None:
    def status(*arguments: str) -> str:
        argv = [sys.executable, "-m", "runed", "status", *arguments]
        return subprocess.run(
            argv, env=clean_environment(RUNED_HOME=str(daemon.home)), capture_output=True, text=True, check=True, timeout=30
        ).stdout

    document = json.loads(status("--json"))
    assert (document["http"], document["http_token"]) == (f"{url_of(daemon)}/v1", str(daemon.home / "http.token"))
    assert f"http      {url_of(daemon)}/v1, with the token in {daemon.home}/http.token" in status().splitlines()


def test_model_of_the_users_own_has_its_name_that_of_its_file_and_its_hash(daemon: RunningDaemon) -> None:
    info = daemon.call("Info")
    assert not info.get("modelVariant")
    with over_tcp(daemon) as http:
        for name in (info["model"], info["modelName"], info["modelIdentity"]):
            assert http.get(f"/v1/models/{name}").json()["id"] == info["model"]
        assert http.get("/v1/models/").json() == http.get("/v1/models").json()


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b'{"input": [1]}', 400), (b'{"input": "' + b"x" * (32 * 1024 * 1024) + b'"}', 413)],
    ids=["cut", "tokens", "too large"],
)
def test_bad_requests_leave_the_daemon_unharmed(content: bytes, status: int, daemon: RunningDaemon) -> None:
    with over_tcp(daemon) as http:
        response = http.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
        assert response.status_code == status
        assert http.post("/v1/embeddings", json={"input": "still there"}).status_code == 200


def test_drain_finishes_what_is_in_flight_and_the_next_daemon_has_the_port_and_the_token(
    start_daemon: Callable[..., RunningDaemon],
) -> None:
    daemon = start_daemon(RUNED_HTTP="127.0.0.1:0")
    daemon.wait_for("STATUS_OK")
    url, token = url_of(daemon), (daemon.home / "http.token").read_text()
    texts = [f"text number {number} of a long call" for number in range(300)]
    with ThreadPoolExecutor() as pool, over_tcp(daemon) as http:
        answer = pool.submit(http.post, "/v1/embeddings", json={"input": texts})
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        daemon.call("Shutdown", {"graceSeconds": 60})
        assert len(answer.result(60).json()["data"]) == 300
    assert daemon.process.wait(30) == 0
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    successor = start_daemon(RUNED_HTTP=url.removeprefix("http://"))
    successor.wait_for("STATUS_OK")
    assert (url_of(successor), (daemon.home / "http.token").read_text()) == (url, token)
    assert successor.stop() == 0


def test_before_the_model_is_there_clients_are_told_to_come_back(
    start_daemon: Callable[..., RunningDaemon], home: Path
) -> None:
    daemon = start_daemon(RUNED_HTTP="[::1]:0", RUNED_MODEL=str(home / "missing.gguf"))
    daemon.wait_for("STATUS_DEGRADED")
    with over_tcp(daemon) as http:
        response = http.post("/v1/embeddings", json={"input": "x"})
        assert response.status_code == 503
        assert response.json()["error"]["code"] in {"BACKEND_UNAVAILABLE", "BOOTSTRAPPING"}
        assert response.headers["x-should-retry"] == "true"
        assert int(response.headers["retry-after"]) >= 1
        assert http.get("/v1/models").json()["data"][0]["id"] == "missing", "a list needs no engine"


def test_address_that_is_not_loopback_is_refused_at_the_start(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_HTTP="0.0.0.0:8321")
    assert daemon.process.wait(30) == 2
    assert "RUNED_HTTP='0.0.0.0:8321': accepted is 127.0.0.1:PORT or [::1]:PORT" in daemon.log()
    assert not daemon.socket.exists()


def test_port_that_is_taken_is_refused_at_the_start(start_daemon: Callable[..., RunningDaemon]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = start_daemon(RUNED_HTTP=address)
        assert daemon.process.wait(30) == 2
    assert f"http://{address} cannot be listened on" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert not daemon.socket.exists()
    assert not (daemon.home / "daemon.json").exists()


def test_without_the_setting_there_is_neither_port_nor_token(qwen_daemon: RunningDaemon) -> None:
    assert url_of(qwen_daemon) == ""
    assert not (qwen_daemon.home / "http.token").exists()
    inodes = set()
    for path in Path(f"/proc/{qwen_daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed between the two looks
            inodes.add(str(path.readlink()))
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{qwen_daemon.process.pid}/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {f"socket:[{line.split()[9]}]" for line in lines}
