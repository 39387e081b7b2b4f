"""The adapter for LangChain, with LangChain."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

import runed
from runed import errors
from runed.integrations.langchain import RunedEmbeddings, RunedReranker
from tests.support import RunningDaemon

TEXTS = ["green tea", "black tea", "a train"]


class TestUnit(EmbeddingsUnitTests):
    """LangChain's own unit tests of an embedding model, which need no network."""

    @property
    def embeddings_class(self) -> type[RunedEmbeddings]:
        return RunedEmbeddings


class TestIntegration(EmbeddingsIntegrationTests):
    """LangChain's own integration tests of an embedding model, which embed."""

    @pytest.fixture(autouse=True)
    def _daemon(self, qwen_daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RUNED_HOME", str(qwen_daemon.home))

    @property
    def embeddings_class(self) -> type[RunedEmbeddings]:
        return RunedEmbeddings


@pytest.fixture
def client(qwen_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        yield client


@pytest.fixture
def embeddings(qwen_daemon: RunningDaemon) -> Iterator[RunedEmbeddings]:
    embeddings = RunedEmbeddings(socket_path=qwen_daemon.socket)
    yield embeddings
    embeddings.close()


def test_documents_and_queries_are_embedded_as_such(embeddings: RunedEmbeddings, client: runed.Client) -> None:
    documents = embeddings.embed_documents(TEXTS)
    assert isinstance(documents[0][0], float)
    assert np.array_equal(documents, client.embed_batch(TEXTS, role="document"))
    query = embeddings.embed_query("green tea")
    assert isinstance(query[0], float)
    assert np.array_equal(query, client.embed("green tea", role="query"))
    assert not np.allclose(query, documents[0])
    assert embeddings.embed_documents([]) == []


async def test_so_are_they_in_an_event_loop_without_a_thread(
    embeddings: RunedEmbeddings, client: runed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embeddings.aembed_query("the first call may start a daemon")
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", None)
    documents, query = await asyncio.gather(embeddings.aembed_documents(TEXTS), embeddings.aembed_query("green tea"))
    assert np.array_equal(documents, client.embed_batch(TEXTS, role="document"))
    assert np.array_equal(query, client.embed("green tea", role="query"))
    await embeddings.aclose()


def test_options_are_applied(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    options: dict[str, Any] = {"dimensions": 32, "truncate": "end", "lane": "interactive", "timeout": 30}
    embeddings = RunedEmbeddings(instruction="Find teas", home=qwen_daemon.home, **options)
    expected = client.embed("green", role="query", instruction="Find teas", dimensions=32)
    assert np.array_equal(embeddings.embed_query("green"), expected)
    assert len(embeddings.embed_documents(["word " * 3000])[0]) == 32


def test_errors_are_those_of_runed(embeddings: RunedEmbeddings) -> None:
    with pytest.raises(errors.TextTooLongError) as raised:
        embeddings.embed_documents(["a", "word " * 3000])
    assert raised.value.metadata["index"] == "1"
    with pytest.raises(errors.EmptyTextError):
        embeddings.embed_query("")
    with pytest.raises(errors.BadDimensionsError):
        RunedEmbeddings(dimensions=0)


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="dimension"):
        RunedEmbeddings(dimension=32)  # type: ignore[call-arg] # on purpose
    with pytest.raises(ValidationError, match="truncate"):
        RunedEmbeddings(truncate="middle")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ValidationError, match="frozen"):
        RunedEmbeddings().dimensions = 32


def test_copies_and_pickles_embed(embeddings: RunedEmbeddings) -> None:
    vector = embeddings.embed_query("green tea")
    for twin in (copy.deepcopy(embeddings), embeddings.model_copy(), pickle.loads(pickle.dumps(embeddings))):
        assert twin == embeddings
        assert twin.embed_query("green tea") == vector
    assert RunedEmbeddings.model_validate_json(embeddings.model_dump_json()).embed_query("green tea") == vector


async def test_a_vector_store_ranks_by_meaning(minilm_daemon: RunningDaemon) -> None:
    store = InMemoryVectorStore(RunedEmbeddings(socket_path=minilm_daemon.socket))
    store.add_documents([Document("Green tea is steeped at 80 degrees."), Document("The night train leaves at ten.")])
    await store.aadd_documents([Document("A violin has four strings.")])
    assert store.similarity_search("When does it depart?", k=1)[0].page_content == "The night train leaves at ten."
    found = await store.as_retriever(search_kwargs={"k": 1}).ainvoke("musical instruments")
    assert found[0].page_content == "A violin has four strings."


PASSAGES = [
    Document("The train leaves at nine.", metadata={"page": 1}),
    Document(" "),
    Document("Tea is a drink."),
    Document("tea"),
]


async def test_a_reranker_sorts_documents_by_their_scores(reranker_daemon: RunningDaemon) -> None:
    reranker = RunedReranker(socket_path=reranker_daemon.socket)
    with runed.connect(socket_path=reranker_daemon.socket) as client:
        expected = client.rerank("tea?", [PASSAGES[index].page_content for index in (0, 2, 3)])
    found = reranker.compress_documents(PASSAGES, "tea?")
    assert [document.page_content for document in found] == [result.document for result in expected]
    assert [document.metadata["relevance_score"] for document in found] == [result.score for result in expected]
    assert next(document for document in found if document.page_content == PASSAGES[0].page_content).metadata["page"] == 1
    assert "relevance_score" not in PASSAGES[0].metadata
    best = await RunedReranker(socket_path=reranker_daemon.socket, top_n=1).acompress_documents(PASSAGES, "tea?")
    assert [document.page_content for document in best] == [expected[0].document]
    assert reranker.compress_documents([Document("")], "tea?") == reranker.compress_documents([], "tea?") == []
    for twin in (copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
        assert twin.compress_documents(PASSAGES, "tea?") == found
    with pytest.raises(errors.UnknownModelError):
        RunedReranker(socket_path=reranker_daemon.socket, model="nothing").compress_documents(PASSAGES, "tea?")
    with pytest.raises(ValidationError, match="top_n"):
        RunedReranker(top_n=0)
    await reranker.aclose()
