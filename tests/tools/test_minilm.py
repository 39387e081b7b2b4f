"""The converted all-MiniLM-L6-v2 is the same model as in sentence-transformers, and always the same file."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from runed.lifecycle.listener import probe
from tests.support import wait_until
from tools import minilm as converter

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@pytest.fixture(scope="module")
def engine(llama_server: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a real engine with the converted model."""
    socket = tmp_path_factory.mktemp("engine") / "engine.sock"
    argv = [str(llama_server), "-m", str(minilm), "--host", str(socket), "--embeddings", "--pooling", "mean"]
    argv += ["-c", "512", "-b", "512", "-ub", "512", "-np", "1", "-t", "2", "--cache-ram", "0", "--offline", "-lv", "1"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=30) as client:
                _wait_until_ready(socket, client, process)
                yield client
        finally:
            process.terminate()


def _wait_until_ready(socket: Path, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    def ready() -> bool:
        assert process.poll() is None, f"llama-server ended with {process.returncode}"
        # httpx would not close the socket of a connection that is refused.
        return probe(socket) and client.get("/health").is_success

    wait_until(ready, what="the loaded model")


def test_every_golden_text_keeps_its_meaning(engine: httpx.Client) -> None:
    golden = json.loads((FIXTURES / "minilm.golden.json").read_text())
    texts = [fixture["text"] for fixture in golden["fixtures"]]
    expected = np.array([fixture["vector"] for fixture in golden["fixtures"]])

    answer = engine.post("/v1/embeddings", json={"input": texts}).raise_for_status().json()
    vectors = np.array([item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])])

    cosines = np.sum(vectors * expected, axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999, texts[int(cosines.argmin())]


def test_token_counts_are_those_of_the_original_tokenizer(engine: httpx.Client) -> None:
    for fixture in json.loads((FIXTURES / "minilm.golden.json").read_text())["fixtures"]:
        answer = engine.post("/tokenize", json={"content": fixture["text"], "add_special": True}).raise_for_status().json()
        assert len(answer["tokens"]) == fixture["tokens"], fixture["text"]


def test_the_same_input_gives_the_same_bytes_and_leaves_no_partial_file(minilm: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "again.gguf"

    converter.convert(converter.package_folder(), output)

    assert [path.name for path in output.parent.iterdir()] == ["again.gguf"]
    assert hashlib.sha256(output.read_bytes()).digest() == hashlib.sha256(minilm.read_bytes()).digest()


@pytest.mark.parametrize(
    ("token", "spelled"),
    [("[CLS]", "[CLS]"), ("##ing", "ing"), ("cat", "\u2581cat"), ("[", "\u2581["), ("]", "\u2581]")],
)
def test_word_pieces_are_spelled_as_llama_cpp_reads_them(token: str, spelled: str) -> None:
    assert converter.gguf_token(token) == spelled
