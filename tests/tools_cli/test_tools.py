"""Common tools, used as in docs/clients.md. None has a copy of the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import RunningDaemon, refusal_of_json

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "runed.v1.RunedService",
]
PROTOCOLS = ["connect", "grpc", "grpcweb"]


def run(program: str, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


def tool(name: str) -> str:
    """Return a tool that `make setup` has installed."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path} is missing: run `make setup`"
    return str(path)


def output(result: subprocess.CompletedProcess[str]) -> str:
    """Run a tool that must succeed, and return its output."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Read JSON objects that follow each other."""
    found = []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


@pytest.fixture
def grpcurl(qwen_daemon: RunningDaemon) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call grpcurl with options before the address, and arguments after it."""

    def call(*operands: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
        options = ["-plaintext", "-unix"] + ([] if data is None else ["-d", "@"])
        return run(tool("grpcurl"), *options, qwen_daemon.socket, *operands, text=data or "")

    return call


@pytest.fixture
def buf_curl(qwen_daemon: RunningDaemon) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call `buf curl` by a protocol."""

    def call(protocol: str, method: str, *options: str, data: str = "") -> subprocess.CompletedProcess[str]:
        fixed = ["--unix-socket", str(qwen_daemon.socket), "--http2-prior-knowledge", "--protocol", protocol]
        payload = ["--data", "@-"] if data else []
        return run(tool("buf"), "curl", *fixed, *options, *payload, f"http://localhost/{method}", text=data)

    return call


def test_grpcurl_lists_and_describes(grpcurl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert output(grpcurl("list")).split() == SERVICES
    assert "runed.v1.RunedService.EmbedStream" in output(grpcurl("list", "runed.v1.RunedService")).split()
    assert "rpc EmbedBatch ( .runed.v1.EmbedBatchRequest )" in output(grpcurl("describe", "runed.v1.RunedService"))
    assert "message EmbedRequest {" in output(grpcurl("describe", "runed.v1.EmbedRequest"))
    assert "LANE_BULK" in output(grpcurl("describe", "runed.v1.Lane"))
    assert "service Health {" in output(grpcurl("describe", "grpc.health.v1.Health"))


def test_grpcurl_calls(grpcurl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    [answer] = documents(output(grpcurl("runed.v1.RunedService/Embed", data='{"text": "hello", "role": "ROLE_QUERY"}')))
    assert len(answer["vector"]) == 64
    items = '{"items": [{"id": "a", "text": "one"}]} {"items": [{"id": "b", "text": "two"}]}'
    streamed = documents(output(grpcurl("runed.v1.RunedService/EmbedStream", data=items)))
    assert {result["id"] for message in streamed for result in message["results"]} == {"a", "b"}
    assert documents(output(grpcurl("grpc.health.v1.Health/Check", data="{}"))) == [{"status": "SERVING"}]


def test_grpcurl_shows_reason_and_facts_of_an_error(grpcurl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    failed = grpcurl("runed.v1.RunedService/EmbedBatch", data='{"texts": ["fine", ""]}')
    assert failed.returncode != 0
    for words in ("InvalidArgument", "google.rpc.ErrorInfo", "EMPTY_TEXT", "runed.v1", '"index": "1"'):
        assert words in failed.stderr
    unknown = grpcurl("describe", "runed.v1.Nothing")
    assert unknown.returncode != 0
    assert "not found" in unknown.stderr.lower()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_buf_curl(protocol: str, buf_curl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    listed = output(buf_curl(protocol, "", "--list-services")).split()
    assert sorted(listed) == SERVICES
    [answer] = documents(output(buf_curl(protocol, "runed.v1.RunedService/Embed", data='{"text": "hello"}')))
    assert len(answer["vector"]) == 64
    items = '{"items": [{"id": "a", "text": "one"}]} {"items": [{"id": "b", "text": "two"}]}'
    streamed = documents(output(buf_curl(protocol, "runed.v1.RunedService/EmbedStream", data=items)))
    assert {result["id"] for message in streamed for result in message["results"]} == {"a", "b"}
    failed = buf_curl(protocol, "runed.v1.RunedService/Embed", data='{"text": ""}')
    assert failed.returncode == 8 * 3  # as documented: the code INVALID_ARGUMENT times 8
    [error] = documents(failed.stderr)
    assert (error["code"], refusal_of_json(error).reason) == ("invalid_argument", "EMPTY_TEXT")


def test_plain_curl(qwen_daemon: RunningDaemon) -> None:
    def call(path: str, data: str) -> dict[str, Any]:
        options = ["--silent", "--show-error", "--unix-socket", str(qwen_daemon.socket), "-H", "Content-Type: application/json"]
        answer: dict[str, Any] = json.loads(output(run("curl", *options, "-d", data, f"http://localhost/{path}")))
        return answer

    assert len(call("runed.v1.RunedService/Embed", '{"text": "hello"}')["vector"]) == 64
    assert len(call("runed.v1.RunedService/EmbedBatch", '{"texts": ["one", "two"]}')["embeddings"]) == 2
    assert refusal_of_json(call("runed.v1.RunedService/Embed", '{"text": ""}')).reason == "EMPTY_TEXT"
    assert call("grpc.health.v1.Health/Check", "{}") == {"status": "SERVING"}
    metrics = run("curl", "--silent", "--unix-socket", qwen_daemon.socket, "http://localhost/metrics")
    assert "runed_engine_up 1.0" in output(metrics)


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_probe(service: str, qwen_daemon: RunningDaemon) -> None:
    result = run(tool("grpc-health-probe"), "-addr", f"unix://{qwen_daemon.socket}", "-service", service)
    assert result.returncode == 0, result.stderr
    assert "SERVING" in result.stderr + result.stdout


def test_health_probe_of_a_daemon_without_engine(start_daemon: Callable[..., RunningDaemon], home: Path) -> None:
    daemon = start_daemon(RUNED_LLAMA_SERVER=str(home / "missing"))
    daemon.wait_for("STATUS_DEGRADED")
    result = run(tool("grpc-health-probe"), "-addr", f"unix://{daemon.socket}")
    assert result.returncode == 4
    assert "NOT_SERVING" in result.stderr + result.stdout


def test_health_probe_of_an_unknown_service_and_of_no_daemon(qwen_daemon: RunningDaemon, home: Path) -> None:
    unknown = run(tool("grpc-health-probe"), "-addr", f"unix://{qwen_daemon.socket}", "-service", "no.such.Service")
    assert unknown.returncode == 3
    assert "there is no such service" in unknown.stderr
    absent = run(tool("grpc-health-probe"), "-addr", f"unix://{home}/embedding.sock", "-connect-timeout", "500ms")
    assert absent.returncode == 2
