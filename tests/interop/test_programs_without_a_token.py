"""Programs for Ollama and for Text Embeddings Inference against a real daemon. They use the packages unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from runed.lifecycle.record import DaemonRecord
from tests.support import RunningDaemon, clean_environment, running_daemon

HERE = Path(__file__).resolve().parent
TEXTS = ["a cat sat on the mat", "le chat était là", "Stromausfall in der Nacht", "zwei Wörter", "eins"]

# Warnings of these packages, at import and in use, are not ours to fix. The hub must not be asked for anything.
QUIET = clean_environment(
    PYTHONWARNINGS="ignore", LANGCHAIN_TRACING_V2="false", LANGSMITH_TRACING="false", HF_HUB_DISABLE_TELEMETRY="1"
)


@pytest.fixture(scope="module")
def daemon(llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    with running_daemon(llama_server, tiny_qwen3, RUNED_HTTP="127.0.0.1:0", RUNED_HTTP_TOKEN="off") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def given(daemon: RunningDaemon) -> dict[str, Any]:
    """The input of a program: the daemon's URL, the tag of its model, and the texts."""
    record = DaemonRecord.read(daemon.home / "daemon.json")
    assert record is not None
    return {"url": record.http, "model": "tiny-qwen3:latest", "texts": TEXTS}


def vectors_of(daemon: RunningDaemon, **options: object) -> NDArray[np.float32]:
    """Return the vectors of the texts by the RPC."""
    answer = daemon.call("EmbedBatch", {"texts": TEXTS} | options)
    return np.array([item["vector"] for item in answer["embeddings"]], "<f4")


def run(script: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a program, and return its output."""
    argv = [sys.executable, str(HERE / script)]
    done = subprocess.run(argv, input=json.dumps(given), env=QUIET, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    output: dict[str, Any] = json.loads(done.stdout)
    return output


def assert_same(vectors: object, expected: NDArray[np.float32]) -> None:
    """Check that the numbers are equal as float32, to the last bit."""
    assert np.array_equal(np.array(vectors).astype("<f4"), expected)


def test_ollama_and_langchain_for_python(given: dict[str, Any], daemon: RunningDaemon) -> None:
    output = run("ollama/python.py", given)
    expected = vectors_of(daemon)
    for way in ("embed", "async", "langchain", "langchain async"):
        assert_same(output[way], expected)
    for way in ("one", "langchain query"):
        assert_same(output[way], expected[0])
    assert_same(output["short"], vectors_of(daemon, dimensions=32))
    assert output["tokens"] == sum(int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"])
    assert output["model"] == given["model"]
    assert given["model"] in output["listed"]
    assert output["running"] == [given["model"]]
    assert (output["capabilities"], output["length"]) == (["embedding"], 64)
    assert (output["pulled"][0], output["pulled"][-1], output["pulled at once"]) == ("pulling manifest", "success", "success")
    status, message = output["refusal"]
    assert status == 404
    assert "there is no model 'nothing:7b'" in message


def test_ollama_for_node(given: dict[str, Any], daemon: RunningDaemon) -> None:
    folder = HERE / "ollama-node"
    assert (folder / "node_modules").is_dir(), f"{folder}/node_modules is missing: run `make setup`"
    tokens = sum(int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"])
    given = given | {"vectors": vectors_of(daemon).astype(float).tolist(), "tokens": tokens}
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        env={"PATH": os.environ["PATH"], "GIVEN": json.dumps(given)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 4" in done.stdout.splitlines()


def test_the_client_of_hugging_face(given: dict[str, Any], daemon: RunningDaemon) -> None:
    output = run("tei/python.py", given)
    expected = vectors_of(daemon)
    assert_same(output["one"], expected[:1])
    assert_same(output["all"], expected)
    assert_same(output["query"], vectors_of(daemon, role="ROLE_QUERY")[:1])
    assert_same(output["short"], vectors_of(daemon, dimensions=32)[:1])
    assert output["cut"] == 64
    assert output["refusal"] == [413, "Validation"]


def test_tokens_of_the_real_engine(given: dict[str, Any], daemon: RunningDaemon) -> None:
    answer = httpx.post(f"{given['url']}/tokenize", json={"inputs": TEXTS}).json()
    counts = [int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"]]
    assert [len(tokens) for tokens in answer] == counts
    plain = httpx.post(f"{given['url']}/tokenize", json={"inputs": TEXTS, "add_special_tokens": False}).json()
    for text, tokens, all_tokens in zip(TEXTS, plain, answer, strict=True):
        assert "".join(token["text"] for token in tokens).replace("\ufffd", "") in text or "\ufffd" in str(tokens)
        assert [token["id"] for token in tokens] == [token["id"] for token in all_tokens if not token["special"]]


def test_no_token_is_made(daemon: RunningDaemon) -> None:
    assert not (daemon.home / "http.token").exists()
