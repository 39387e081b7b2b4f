"""The engine dies or cannot be had: the caller is told the reason, and the next try works."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest

from tests.support import PROTOCOLS, RunningDaemon, call, refusal_of_json, wait_until

StartDaemon = Callable[..., RunningDaemon]


def test_killed_engine_is_replaced_without_the_caller_noticing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    os.kill(engine, signal.SIGKILL)
    assert len(daemon.call("Embed", {"text": "hello"})["vector"]) == 64
    health = daemon.wait_for("STATUS_OK")
    assert health["engineRestarts"] == "1"
    assert int(health["enginePid"]) != engine


def test_missing_model_degrades_and_recovers_when_it_is_put_there(
    start_daemon: StartDaemon, home: Path, tiny_qwen3: Path
) -> None:
    model = home / "later.gguf"
    daemon = start_daemon(RUNED_MODEL=str(model))
    health = daemon.wait_for("STATUS_DEGRADED")
    assert str(model) in health["message"]
    refusal = refusal_of_json(daemon.call("Embed", {"text": "hello"}))
    assert (refusal.code, refusal.reason) == ("unavailable", "BACKEND_UNAVAILABLE")
    assert refusal.retry_seconds is None, "a client would try again in silence, and only the user can mend this"
    shutil.copy(tiny_qwen3, model)
    wait_until(lambda: "vector" in daemon.call("Embed", {"text": "hello"}), timeout=20, what="the recovery")


def test_broken_model_is_told_in_health(start_daemon: StartDaemon, home: Path, tiny_qwen3: Path) -> None:
    model = home / "cut.gguf"
    model.write_bytes(tiny_qwen3.read_bytes()[:300_000])
    daemon = start_daemon(RUNED_MODEL=str(model))
    message = daemon.wait_for("STATUS_DEGRADED")["message"]
    assert "cut.gguf" in message
    assert "Traceback" not in daemon.log()


def test_engine_that_cannot_run_is_told_with_its_own_words(start_daemon: StartDaemon, home: Path) -> None:
    engine = home / "llama-server"
    engine.write_text("#!/bin/sh\necho 'libgomp.so.1: cannot open shared object file' >&2\nexit 127\n")
    engine.chmod(0o755)
    daemon = start_daemon(RUNED_LLAMA_SERVER=str(engine))
    assert "libgomp.so.1" in daemon.wait_for("STATUS_DEGRADED", timeout=60)["message"]
    refusal = refusal_of_json(daemon.call("Embed", {"text": "hello"}))
    assert refusal.reason == "BACKEND_UNAVAILABLE"
    assert "libgomp.so.1" in refusal.message


def test_dead_engine_fails_the_whole_call_even_where_errors_are_told_by_the_item(start_daemon: StartDaemon, home: Path) -> None:
    engine = home / "llama-server"
    engine.write_text("#!/bin/sh\nexit 127\n")
    engine.chmod(0o755)
    daemon = start_daemon(RUNED_LLAMA_SERVER=str(engine))
    daemon.wait_for("STATUS_DEGRADED", timeout=60)
    few, many = ["a", "", "b"], [f"text {number}" for number in range(20)]  # many are counted first
    for protocol, texts in [*((protocol, few) for protocol in PROTOCOLS), ("connect+json", many)]:
        answer = call(protocol, daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=texts, per_item_errors=True))
        assert answer.refusal is not None, answer
        assert (answer.refusal.code, answer.refusal.reason) == ("unavailable", "BACKEND_UNAVAILABLE")
        assert answer.refusal.retry_seconds
    with daemon.http() as http:
        response = http.post("/v1/embeddings", json={"input": ["a", "b"]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "BACKEND_UNAVAILABLE")
    assert int(response.headers["retry-after"]) >= 1
