"""The adapter for Haystack, with Haystack."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

import runed
from runed import errors
from runed.integrations.haystack import RunedDocumentEmbedder, RunedRanker, RunedTextEmbedder
from tests.support import RunningDaemon

TEXTS = ["green tea", "black tea", "a train"]
DOCUMENTS = ["Green tea is steeped at 80 degrees.", "The night train leaves at ten.", "A violin has four strings."]


@pytest.fixture
def client(qwen_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        yield client


def test_documents_and_queries_are_embedded_as_such(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    documents = [Document(content=text, meta={"number": number}) for number, text in enumerate(TEXTS)]
    found = RunedDocumentEmbedder(socket_path=qwen_daemon.socket).run(documents)["documents"]
    assert np.array_equal([document.embedding for document in found], client.embed_batch(TEXTS, role="document"))
    assert isinstance(found[0].embedding[0], float)
    assert [(document.id, document.content, document.meta) for document in found] == [
        (document.id, document.content, document.meta) for document in documents
    ]
    assert [document.embedding for document in documents] == [None] * 3
    query = RunedTextEmbedder(socket_path=qwen_daemon.socket).run("green tea")["embedding"]
    assert isinstance(query[0], float)
    assert np.array_equal(query, client.embed("green tea", role="query"))
    assert not np.allclose(query, found[0].embedding)
    assert RunedDocumentEmbedder(socket_path=qwen_daemon.socket).run([]) == {"documents": []}


async def test_so_are_they_in_an_event_loop_without_a_thread(
    qwen_daemon: RunningDaemon, client: runed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, documents = RunedTextEmbedder(socket_path=qwen_daemon.socket), RunedDocumentEmbedder(socket_path=qwen_daemon.socket)
    await texts.run_async("the first call may start a daemon")
    await documents.run_async([Document(content="as above")])
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", None)
    query, found = await asyncio.gather(
        texts.run_async("green tea"), documents.run_async([Document(content=text) for text in TEXTS])
    )
    assert np.array_equal(query["embedding"], client.embed("green tea", role="query"))
    vectors = [document.embedding for document in found["documents"]]
    assert np.array_equal(vectors, client.embed_batch(TEXTS, role="document"))
    await texts.aclose()
    await documents.aclose()


def test_metadata_stands_in_front_of_the_text(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    embedder = RunedDocumentEmbedder(
        socket_path=qwen_daemon.socket, meta_fields_to_embed=["title", "year", "missing", "empty"], embedding_separator=" | "
    )
    document = Document(content="green tea", meta={"title": "Drinks", "year": 1999, "empty": None})
    [found] = embedder.run([document])["documents"]
    assert np.array_equal(found.embedding, client.embed("Drinks | 1999 | green tea", role="document"))
    assert found.content == "green tea"


def test_options_are_applied(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    options: dict[str, Any] = {"dimensions": 32, "truncate": "end", "lane": "interactive", "timeout": 30}
    embedder = RunedTextEmbedder(instruction="Find teas", home=qwen_daemon.home, **options)
    expected = client.embed("green", role="query", instruction="Find teas", dimensions=32)
    assert np.array_equal(embedder.run("green")["embedding"], expected)
    [cut] = RunedDocumentEmbedder(home=qwen_daemon.home, **options).run([Document(content="word " * 3000)])["documents"]
    assert len(cut.embedding) == 32


def test_errors_are_those_of_runed(qwen_daemon: RunningDaemon) -> None:
    with pytest.raises(errors.TextTooLongError) as raised:
        RunedDocumentEmbedder(socket_path=qwen_daemon.socket).run([Document(content="a"), Document(content="word " * 3000)])
    assert raised.value.metadata["index"] == "1"
    with pytest.raises(errors.EmptyTextError):
        RunedDocumentEmbedder(socket_path=qwen_daemon.socket).run([Document(content=None)])
    with pytest.raises(errors.EmptyTextError):
        RunedTextEmbedder(socket_path=qwen_daemon.socket).run("")
    with pytest.raises(errors.BadDimensionsError):
        RunedTextEmbedder(dimensions=0)


def test_a_pipeline_is_written_and_read(minilm_daemon: RunningDaemon) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", RunedDocumentEmbedder(socket_path=minilm_daemon.socket, meta_fields_to_embed=["title"]))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing.run({"embedder": {"documents": [Document(content=text) for text in DOCUMENTS]}})

    search = Pipeline()
    search.add_component("embedder", RunedTextEmbedder(socket_path=minilm_daemon.socket, truncate="end"))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    search.connect("embedder.embedding", "retriever.query_embedding")

    def best(question: str) -> str:
        return str(search.run({"embedder": {"text": question}})["retriever"]["documents"][0].content)

    assert best("When does it depart?") == DOCUMENTS[1]
    assert best("musical instruments") == DOCUMENTS[2]
    for pipeline in (indexing, search):
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=["runed.integrations.haystack"])
        written = again.to_dict()["components"]["embedder"]
        assert written == pipeline.to_dict()["components"]["embedder"]
        assert written["init_parameters"]["socket_path"] == str(minilm_daemon.socket)


@pytest.mark.parametrize("cls", [RunedTextEmbedder, RunedDocumentEmbedder, RunedRanker])
def test_arguments_survive_a_dictionary_and_a_copy(
    cls: type[RunedTextEmbedder | RunedDocumentEmbedder | RunedRanker], tmp_path: Path
) -> None:
    made = cls(home=tmp_path, truncate="end", timeout=3, model="mine")
    data = made.to_dict()
    assert (
        data["init_parameters"] | {"home": str(tmp_path), "truncate": "end", "timeout": 3, "model": "mine"}
        == data["init_parameters"]
    )
    assert cls.from_dict(data).to_dict() == data == copy.deepcopy(made).to_dict()


async def test_a_ranker_sorts_documents_by_their_scores(reranker_daemon: RunningDaemon) -> None:
    texts = ["The train leaves at nine.", "Tea is a drink.", "tea"]
    documents = [Document(content=text) for text in (*texts, " ")]
    ranker = RunedRanker(socket_path=reranker_daemon.socket)
    with runed.connect(socket_path=reranker_daemon.socket) as client:
        expected = client.rerank("tea?", texts)
    found = ranker.run("tea?", documents)["documents"]
    assert [(document.content, document.score) for document in found] == [(row.document, row.score) for row in expected]
    assert [document.score for document in documents] == [None] * 4
    best = await RunedRanker(socket_path=reranker_daemon.socket, top_k=1).run_async("tea?", documents)
    assert [document.content for document in best["documents"]] == [expected[0].document]
    assert len(ranker.run("tea?", documents, top_k=2)["documents"]) == 2
    assert ranker.run("tea?", []) == {"documents": []}
    with pytest.raises(ValueError, match="top_k is 0"):
        RunedRanker(top_k=0)
    await ranker.aclose()
