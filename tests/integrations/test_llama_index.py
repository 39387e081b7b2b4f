"""The adapter for LlamaIndex, with LlamaIndex."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

import runed
from runed import errors
from runed.integrations.llama_index import RunedEmbedding, RunedRerank
from tests.support import RunningDaemon

TEXTS = ["green tea", "black tea", "a train"]


@pytest.fixture
def client(qwen_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        yield client


@pytest.fixture
def embedding(qwen_daemon: RunningDaemon) -> Iterator[RunedEmbedding]:
    embedding = RunedEmbedding(socket_path=qwen_daemon.socket)
    yield embedding
    embedding.close()


def test_texts_and_queries_are_embedded_as_such(embedding: RunedEmbedding, client: runed.Client) -> None:
    document = embedding.get_text_embedding("green tea")
    assert isinstance(document[0], float)
    assert np.array_equal(document, client.embed("green tea", role="document"))
    query = embedding.get_query_embedding("green tea")
    assert np.array_equal(query, client.embed("green tea", role="query"))
    assert not np.allclose(query, document)
    assert np.array_equal(embedding.get_text_embedding_batch(TEXTS), client.embed_batch(TEXTS, role="document"))
    assert embedding.get_text_embedding_batch([]) == []


async def test_so_are_they_in_an_event_loop_without_a_thread(
    embedding: RunedEmbedding, client: runed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embedding.aget_query_embedding("the first call may start a daemon")
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", None)
    assert np.array_equal(await embedding.aget_query_embedding("green tea"), client.embed("green tea", role="query"))
    assert np.array_equal(await embedding.aget_text_embedding("green tea"), client.embed("green tea", role="document"))
    assert np.array_equal(await embedding.aget_text_embedding_batch(TEXTS), client.embed_batch(TEXTS, role="document"))
    await embedding.aclose()


async def test_batches_have_the_size_that_was_asked_for(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    texts = [f"text {number}" for number in range(50)]
    expected = client.embed_batch(texts, role="document")
    embedding = RunedEmbedding(socket_path=qwen_daemon.socket, embed_batch_size=10)
    for give in (embedding.get_text_embedding_batch, lambda texts: asyncio.run(embedding.aget_text_embedding_batch(texts))):
        before = client.health().total_requests
        assert np.array_equal(await asyncio.to_thread(give, texts), expected)
        assert client.health().total_requests == before + 5


def test_options_are_applied(qwen_daemon: RunningDaemon, client: runed.Client) -> None:
    embedding = RunedEmbedding(
        dimensions=32, instruction="Find teas", truncate="end", lane="interactive", home=qwen_daemon.home, timeout=30
    )
    expected = client.embed("green", role="query", instruction="Find teas", dimensions=32)
    assert np.array_equal(embedding.get_query_embedding("green"), expected)
    assert len(embedding.get_text_embedding("word " * 3000)) == 32


def test_errors_are_those_of_runed(embedding: RunedEmbedding) -> None:
    with pytest.raises(errors.TextTooLongError) as raised:
        embedding.get_text_embedding_batch(["a", "word " * 3000])
    assert raised.value.metadata["index"] == "1"
    with pytest.raises(errors.EmptyTextError):
        embedding.get_query_embedding("")
    with pytest.raises(errors.BadDimensionsError):
        RunedEmbedding(dimensions=0)


def test_settings_can_be_written_and_read(embedding: RunedEmbedding, qwen_daemon: RunningDaemon) -> None:
    small = RunedEmbedding(socket_path=qwen_daemon.socket, dimensions=32, embed_batch_size=7)
    document = small.to_dict()
    assert document["class_name"] == "RunedEmbedding"
    read = RunedEmbedding.from_dict(json.loads(json.dumps(document)))
    assert (read.dimensions, read.embed_batch_size) == (32, 7)
    vector = small.get_query_embedding("green tea")
    for twin in (read, RunedEmbedding.from_json(small.to_json()), pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert twin.get_query_embedding("green tea") == vector


async def test_an_index_ranks_by_meaning(minilm_daemon: RunningDaemon) -> None:
    nodes = [TextNode(text=text) for text in ("Green tea is steeped at 80 degrees.", "The night train leaves at ten.")]
    index = VectorStoreIndex(nodes, embed_model=RunedEmbedding(socket_path=minilm_daemon.socket))
    index.insert_nodes([TextNode(text="A violin has four strings.")])
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve("When does it depart?")[0].text == "The night train leaves at ten."
    assert (await retriever.aretrieve("musical instruments"))[0].text == "A violin has four strings."


async def test_a_reranker_sorts_nodes_by_their_scores(reranker_daemon: RunningDaemon) -> None:
    texts = ["The train leaves at nine.", "Tea is a drink.", "tea"]
    nodes = [NodeWithScore(node=TextNode(text=text, id_=text), score=0.5) for text in (*texts, " ")]
    reranker = RunedRerank(socket_path=reranker_daemon.socket)
    with runed.connect(socket_path=reranker_daemon.socket) as client:
        expected = client.rerank("tea?", texts)
    found = reranker.postprocess_nodes(nodes, query_str="tea?")
    assert [(node.node.node_id, node.score) for node in found] == [(result.document, result.score) for result in expected]
    best = await RunedRerank(socket_path=reranker_daemon.socket, top_n=1).apostprocess_nodes(nodes, QueryBundle("tea?"))
    assert [node.node.node_id for node in best] == [expected[0].document]
    assert reranker.postprocess_nodes([], query_str="tea?") == []
    with pytest.raises(ValueError, match="needs the query"):
        reranker.postprocess_nodes(nodes)
    assert pickle.loads(pickle.dumps(reranker)).postprocess_nodes(nodes, query_str="tea?") == found
    await reranker.aclose()
