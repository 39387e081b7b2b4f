"""A text that kills the engine, or gets no vector, is refused itself, by its place, on every way in. No other text suffers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
from gguf.scripts import gguf_new_metadata
from runed_proto.runed.v1.runed_pb2 import CountTokensRequest, EmbedBatchRequest, EmbedBatchResponse, EmbedRequest

import runed
from runed.errors import BackendFaultError
from tests.backends.support import FakeEngine
from tests.support import PROTOCOLS, RunningDaemon, call, running_daemon, wait_until

StartDaemon = Callable[..., RunningDaemon]

DEADLY = "Z" * 131072
"""A text that overflows the stack of llama-server with the tokenizer of `deadly_model`."""


@pytest.fixture(scope="module")
def deadly_model(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The tiny Qwen3 with a tokenizer whose regular expression recurses for each letter of a word."""
    path = tmp_path_factory.mktemp("model") / "deadly.gguf"
    reader, writer = gguf.GGUFReader(tiny_qwen3), gguf.GGUFWriter(path, "qwen3")
    change = gguf_new_metadata.MetadataDetails(gguf.GGUFValueType.STRING, "gpt-4o")
    gguf_new_metadata.copy_with_new_metadata(reader, writer, {gguf.Keys.Tokenizer.PRE: change}, [])
    return path


@pytest.fixture(scope="module")
def daemon(llama_server: Path, deadly_model: Path) -> Iterator[RunningDaemon]:
    with running_daemon(llama_server, deadly_model) as daemon:
        yield daemon


def deadly(number: int) -> str:
    """Return a deadly text that the daemon has not met."""
    return f"{number}{DEADLY}"


def deaths(daemon: RunningDaemon) -> int:
    """Return the number of engines that died, once the last one is replaced."""
    return int(daemon.wait_for("STATUS_OK").get("engineRestarts", 0))


def test_one_deadly_text_of_64_costs_few_engines_and_no_other_text(daemon: RunningDaemon) -> None:
    before = deaths(daemon)
    texts = [f"text {number}" for number in range(64)]
    texts[40] = deadly(1)
    with runed.connect(home=daemon.home) as client:
        outcomes = client.embed_items(texts)
        failed = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        assert failed == [40]
        error = outcomes[40]
        assert isinstance(error, BackendFaultError)
        assert error.metadata["index"] == "40"
        assert "the engine died 2 times while it had only this text" in error.message
        assert deaths(daemon) - before <= 4
        with pytest.raises(BackendFaultError, match=r"^text 40 of the batch .*: the engine died 2 times") as caught:
            client.embed_batch(texts)
        assert caught.value.metadata["index"] == "40"
        assert deaths(daemon) - before <= 4, "it was sent to the engine again"


def test_deadly_text_is_refused_alone_in_every_protocol(daemon: RunningDaemon) -> None:
    for protocol in PROTOCOLS:
        one = call(protocol, daemon.socket, "Embed", EmbedRequest(text=deadly(2)))
        counted = call(protocol, daemon.socket, "CountTokens", CountTokensRequest(texts=["a", deadly(2)]))
        for answer, index in [(one, "0"), (counted, "1")]:
            assert answer.refusal is not None
            assert (answer.refusal.code, answer.refusal.reason) == ("internal", "BACKEND_FAULT")
            assert answer.refusal.metadata == {"index": index}
            assert answer.refusal.retry_seconds is None
            assert len(answer.refusal.message) < 300
    with daemon.http() as http:
        response = http.post("/v1/embeddings", json={"input": ["a", deadly(2)]})
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "BACKEND_FAULT"
    assert response.json()["error"]["message"].startswith("text 1 of the batch")


def test_stream_names_the_deadly_text_and_answers_the_others(daemon: RunningDaemon) -> None:
    texts = {number: deadly(3) if number == 7 else f"streamed {number}" for number in range(200)}
    with runed.connect(home=daemon.home) as client:
        outcomes = dict(client.embed_stream(texts.items()))
    assert outcomes.keys() == texts.keys()
    assert [number for number, outcome in outcomes.items() if isinstance(outcome, BackendFaultError)] == [7]


def test_job_names_the_deadly_line_and_keeps_all_others(daemon: RunningDaemon, tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(150)]
    lines[99] = deadly(4)
    (tmp_path / "in.txt").write_text("\n".join(lines))

    def job(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runed", "embed", "--batch", "in.txt", "-o", "out.jsonl", *flags]
        return subprocess.run(command, env=daemon.environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    refused = job()
    assert refused.returncode == 1
    assert "in.txt, line 100: the engine died" in refused.stderr
    assert "the first 99 vectors are kept" in refused.stderr
    kept = job("--resume", "--keep-going")
    assert kept.returncode == 1
    assert "runed: 150 texts (99 of them by an earlier run)" in kept.stderr
    assert ", 1 error, to out.jsonl" in kept.stderr
    rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [index for index, row in enumerate(rows) if "embedding" not in row] == [99]
    assert len(rows) == 150


def test_honest_callers_are_served_while_deadly_texts_come(daemon: RunningDaemon) -> None:
    def embed(number: int) -> object:
        with runed.connect(home=daemon.home) as client:
            return client.embed_items([deadly(number) if number < 13 else f"honest {number}"], timeout=20)[0]

    with ThreadPoolExecutor(8) as callers:
        outcomes = list(callers.map(embed, range(10, 40)))
    assert [isinstance(outcome, BackendFaultError) for outcome in outcomes] == [True] * 3 + [False] * 27


def test_no_deadly_text_is_logged(daemon: RunningDaemon) -> None:
    with runed.connect(home=daemon.home) as client, pytest.raises(BackendFaultError):
        client.embed(deadly(5))
    assert "ZZZZ" not in daemon.log() + (daemon.home / "logs" / "llama-server.log").read_text()


# An engine that answers wrong vectors


def test_fault_names_the_text_of_a_batch_in_every_protocol(start_daemon: StartDaemon, home: Path) -> None:
    fake = FakeEngine(home / "engine")
    fake.behave(on={"nan": "nan", "zeros": "zeros", "short": "dimension"})
    daemon = start_daemon(RUNED_LLAMA_SERVER=str(fake.executable))
    daemon.wait_for("STATUS_OK")
    for protocol, bad in zip(PROTOCOLS, ["nan", "zeros", "short", "nan"], strict=True):
        texts = ["a", "b", bad, "c"]
        answer = call(protocol, daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=texts))
        assert answer.refusal is not None
        assert (answer.refusal.reason, answer.refusal.metadata) == ("BACKEND_FAULT", {"index": "2"})
        assert answer.refusal.message.startswith("text 2 of the batch (counted from 0): llama-server answered a vector")
        answer = call(protocol, daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=texts, per_item_errors=True))
        assert isinstance(answer.message, EmbedBatchResponse)
        errors = [item.error for item in answer.message.embeddings]
        assert [error.reason for error in errors] == ["", "", "BACKEND_FAULT", ""]
        assert dict(errors[2].metadata) == {"index": "2"}
    with daemon.http() as http:
        told = http.post("/v1/embeddings", json={"input": ["a", "b", "c", "nan"]}).json()["error"]
    assert told["message"].startswith("text 3 of the batch")
    assert daemon.health().get("engineRestarts", "0") == "0"


def test_poisoned_engine_is_replaced_and_the_callers_notice_nothing(start_daemon: StartDaemon, home: Path) -> None:
    fake = FakeEngine(home / "engine")
    fake.behave(on={"bad luck": "poison-once", "poison": "poison"})
    daemon = start_daemon(RUNED_LLAMA_SERVER=str(fake.executable))
    daemon.wait_for("STATUS_OK")
    with runed.connect(home=home) as client:
        assert client.embed_batch(["one", "bad luck", "two"]).shape == (3, 64)
        assert deaths(daemon) == 1
        outcomes = client.embed_items(["three", "poison", "four"])
        assert [isinstance(outcome, BackendFaultError) for outcome in outcomes] == [False, True, False]
        assert client.embed("five").shape == (64,)
    wait_until(lambda: deaths(daemon) == 4)
