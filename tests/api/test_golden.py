"""The right vectors by every protocol, for both kinds of pooling."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    InfoRequest,
    InfoResponse,
)

import runed
from tests.support import PROTOCOLS, Golden, RunningDaemon, call, wait_until

CASES = [("qwen_daemon", "tiny_golden"), ("minilm_daemon", "minilm_golden")]


def embed_batch(protocol: str, daemon: RunningDaemon, texts: list[str]) -> NDArray[np.float32]:
    answer = call(protocol, daemon.socket, "EmbedBatch", EmbedBatchRequest(texts=texts))
    assert answer.refusal is None
    response = cast("EmbedBatchResponse", answer.message)
    return np.array([embedding.vector for embedding in response.embeddings], dtype=np.float32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("daemon_name", "golden_name"), CASES)
def test_vectors_agree_with_the_reference(
    request: pytest.FixtureRequest, protocol: str, daemon_name: str, golden_name: str
) -> None:
    daemon: RunningDaemon = request.getfixturevalue(daemon_name)
    golden: Golden = request.getfixturevalue(golden_name)
    batch = embed_batch(protocol, daemon, golden.texts)
    assert golden.cosines(batch).min() >= 0.9999
    assert np.allclose(np.linalg.norm(batch, axis=1), 1, atol=1e-3)
    answer = call(protocol, daemon.socket, "Embed", EmbedRequest(text=golden.texts[0]))
    single = np.array([cast("EmbedResponse", answer.message).vector], dtype=np.float32)
    assert np.allclose(single[0], batch[0], atol=1e-5)


@pytest.mark.parametrize(("daemon_name", "golden_name"), CASES)
async def test_vectors_of_the_python_clients_agree_with_the_reference(
    request: pytest.FixtureRequest, daemon_name: str, golden_name: str
) -> None:
    daemon: RunningDaemon = request.getfixturevalue(daemon_name)
    golden: Golden = request.getfixturevalue(golden_name)
    with runed.connect(socket_path=daemon.socket) as client:
        batch = client.embed_batch(golden.texts)
        single = client.embed(golden.texts[1])
    assert batch.dtype == single.dtype == np.dtype(np.float32)
    assert (batch.shape, single.shape) == (golden.vectors.shape, golden.vectors.shape[1:])
    assert golden.cosines(batch).min() >= 0.9999
    assert np.allclose(single, batch[1], atol=1e-5)
    async with await runed.connect_async(socket_path=daemon.socket) as async_client:
        assert np.array_equal(await async_client.embed_batch(golden.texts), batch)


@pytest.mark.parametrize(("daemon_name", "golden_name"), CASES)
def test_tokens_are_counted_as_the_reference_does(request: pytest.FixtureRequest, daemon_name: str, golden_name: str) -> None:
    daemon: RunningDaemon = request.getfixturevalue(daemon_name)
    golden: Golden = request.getfixturevalue(golden_name)
    for text in golden.texts:
        daemon.call("Embed", {"text": text})

    def counted() -> bool:  # the lines are written soon
        tokens = [line["tokens"] for line in daemon.log_lines() if line["message"] == "embedding call"]
        return tokens[-len(golden.tokens) :] == golden.tokens

    wait_until(counted, what="the lines of all texts with their tokens")


def test_largest_batch_keeps_its_order(qwen_daemon: RunningDaemon) -> None:
    texts = [f"n{number % 64}" for number in range(2048)]
    vectors = embed_batch("grpc", qwen_daemon, texts)
    assert vectors.shape == (2048, 64)
    alone = embed_batch("grpc", qwen_daemon, texts[:64])
    assert np.abs(vectors.reshape(32, 64, 64) - alone).max() < 1e-4
    assert len({vector.tobytes() for vector in alone}) == 64


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_info_describes_the_model(protocol: str, qwen_daemon: RunningDaemon) -> None:
    info = cast("InfoResponse", call(protocol, qwen_daemon.socket, "Info", InfoRequest()).message)
    assert info.vector_dim == 64
    assert info.pooling == "last"
    assert info.model_identity.startswith("sha256:")
    assert len(info.model_identity) == len("sha256:") + 16
    assert info.max_batch_size == 2048
    assert info.max_text_length > 0
