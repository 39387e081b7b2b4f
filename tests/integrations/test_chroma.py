"""The adapter for Chroma, with Chroma."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings

import runed
from runed import errors
from runed.integrations.chroma import RunedEmbeddingFunction
from tests.client.conftest import live_descriptors
from tests.support import RunningDaemon, clean_environment

TEXTS = ["green tea", "black tea", "a train"]
DOCUMENTS = ["Green tea is steeped at 80 degrees.", "The night train leaves at ten.", "A violin has four strings."]

QUIET = Settings(anonymized_telemetry=False)
"""Settings without telemetry. Earlier versions of Chroma sent it, and later ones may do so again."""


@pytest.fixture
def client(qwen_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        yield client


@pytest.fixture
def function(qwen_daemon: RunningDaemon) -> Iterator[RunedEmbeddingFunction]:
    function = RunedEmbeddingFunction(socket_path=qwen_daemon.socket)
    yield function
    function.close()


def test_documents_and_queries_are_embedded_as_such(function: RunedEmbeddingFunction, client: runed.Client) -> None:
    documents = function(TEXTS)
    assert isinstance(documents, list)
    assert all(vector.dtype == np.float32 for vector in documents)
    assert np.array_equal(documents, client.embed_batch(TEXTS, role="document"))
    queries = function.embed_query(TEXTS)
    assert np.array_equal(queries, client.embed_batch(TEXTS, role="query"))
    assert not np.allclose(queries, documents)


def test_options_are_applied(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    function = RunedEmbeddingFunction(
        dimensions=32, instruction="Find teas", truncate="end", lane="interactive", home=qwen_daemon.home, timeout=30
    )
    expected = client.embed_batch(TEXTS, role="query", instruction="Find teas", dimensions=32)
    assert np.array_equal(function.embed_query(TEXTS), expected)
    assert function(["word " * 3000])[0].shape == (32,)


def test_errors_are_those_of_runed(function: RunedEmbeddingFunction) -> None:
    with pytest.raises(errors.TextTooLongError) as raised:
        function(["a", "word " * 3000])
    assert raised.value.metadata["index"] == "1"
    with pytest.raises(errors.EmptyTextError):
        function.embed_query([""])
    with pytest.raises(errors.BadDimensionsError):
        RunedEmbeddingFunction(dimensions=0)


def test_a_collection_asks_with_the_role_of_queries(function: RunedEmbeddingFunction, client: runed.Client) -> None:
    collection = chromadb.EphemeralClient(QUIET).create_collection("roles", embedding_function=function)
    collection.add(ids=["a"], documents=["green tea"])
    stored = collection.get(include=["embeddings"])["embeddings"]
    assert stored is not None
    assert np.allclose(stored[0], client.embed("green tea", role="document"))
    found = collection.query(query_texts=["green tea"])["distances"]
    assert found is not None
    cosine = client.embed("green tea", role="document") @ client.embed("green tea", role="query")
    assert found[0][0] == pytest.approx(1 - cosine, abs=1e-5)


def test_a_collection_in_memory_ranks_by_meaning(minilm_daemon: RunningDaemon) -> None:
    function = RunedEmbeddingFunction(socket_path=minilm_daemon.socket)
    collection = chromadb.EphemeralClient(QUIET).create_collection("meaning", embedding_function=function)
    collection.add(ids=["tea", "train", "violin"], documents=DOCUMENTS)
    found = collection.query(query_texts=["When does it depart?", "musical instruments"], n_results=1)
    assert found["ids"] == [["train"], ["violin"]]
    assert (collection.configuration["hnsw"] or {})["space"] == "cosine"


def test_a_function_that_is_made_again_for_each_query_connects_once(function: RunedEmbeddingFunction) -> None:
    function(TEXTS)
    descriptors = live_descriptors()
    for _ in range(3):
        RunedEmbeddingFunction.build_from_config(function.get_config()).embed_query(TEXTS)
        assert live_descriptors() == descriptors


def test_arguments_of_a_collection_may_change_but_for_the_dimensions(function: RunedEmbeddingFunction) -> None:
    collection = chromadb.EphemeralClient(QUIET).create_collection("changing", embedding_function=function)
    config = function.get_config()
    collection.modify(configuration={"embedding_function": RunedEmbeddingFunction(**config | {"instruction": "Find teas"})})
    assert (collection.configuration["embedding_function"] or function).get_config()["instruction"] == "Find teas"
    with pytest.raises(ValueError, match="make another collection"):
        collection.modify(configuration={"embedding_function": RunedEmbeddingFunction(**config | {"dimensions": 32})})


LATER = """
import sys, chromadb
from chromadb.config import Settings
import runed.integrations.chroma

client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))
collection = client.get_collection("notes")
print(collection.query(query_texts=["When does it depart?"], n_results=1)["ids"])
print(collection.configuration["embedding_function"].get_config()["truncate"])
"""


def test_a_collection_on_the_disk_finds_its_function_again(minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    function = RunedEmbeddingFunction(socket_path=minilm_daemon.socket, truncate="end")
    collection = chromadb.PersistentClient(tmp_path, QUIET).create_collection("notes", embedding_function=function)
    collection.add(ids=["tea", "train", "violin"], documents=DOCUMENTS)
    argv = [sys.executable, "-c", LATER, str(tmp_path)]
    result = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (0, "[['train']]\nend\n"), result.stderr
