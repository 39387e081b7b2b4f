"""Ray Serve with a replica on each of two nodes, each with a real daemon."""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import runed
from tests.cluster.conftest import RayCluster
from tests.support import Golden, wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(shared_cluster: RayCluster) -> Iterator[str]:
    serve: Any = importlib.import_module("ray.serve")
    module: Any = importlib.import_module("runed.integrations.ray_serve")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(module.Daemon.options(num_replicas=2).bind(), route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_both_nodes_answer_the_openai_api(address: str, shared_cluster: RayCluster, minilm_golden: Golden) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client:
        assert [model.id for model in client.models.list()]

        def ask(_number: int) -> bool:
            answer = client.embeddings.create(model="", input=minilm_golden.texts, encoding_format="float")
            vectors = np.array([item.embedding for item in answer.data], dtype=np.float32)
            return bool(minilm_golden.cosines(vectors).min() >= 0.9999)

        # At once, since Serve prefers the replica of its own node while that has room.
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(64)))
    assert [len(home.daemons()) for home in shared_cluster.homes] == [1, 1]
    for home in shared_cluster.homes:
        with runed.connect(home=home.path, spawn=False) as direct:
            assert direct.health().total_texts > 0


def test_connect_is_answered_and_nothing_can_be_shut_down(address: str, shared_cluster: RayCluster) -> None:
    with httpx.Client(base_url=address) as http:
        answer = http.post("/runed.v1.RunedService/Embed", json={"text": "green tea"})
        assert len(answer.json()["vector"]) == 384
        refused = http.post("/runed.v1.RunedService/Embed", json={"text": ""})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
        for path in ("/runed.v1.RunedService/Shutdown", "/runed.v1.RunedService/SetCentroids", "/metrics", "/"):
            assert http.post(path, json={}).status_code == 404
    assert all(home.daemon() for home in shared_cluster.homes)


def test_cancel_reaches_the_node(address: str, shared_cluster: RayCluster) -> None:
    texts = [f"cancelled {number} " + "word " * 200 for number in range(1000)]

    def queued() -> int:
        total = 0
        for home in shared_cluster.homes:
            with runed.connect(home=home.path, spawn=False) as client:
                health = client.health()
                total += health.in_flight_requests
        return total

    with httpx.Client(base_url=address, timeout=2) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json={"input": texts})
    began = time.monotonic()
    wait_until(lambda: queued() == 0, timeout=10, what="the end of the cancelled work")
    assert time.monotonic() - began < 10


def test_replica_answers_again_after_the_death_of_its_daemon(address: str, shared_cluster: RayCluster) -> None:
    for home in shared_cluster.homes:
        if daemon := home.daemon():
            daemon.kill()
            daemon.wait(10)

    def answered() -> bool:
        return httpx.post(f"{address}/v1/embeddings", json={"input": "green tea"}, timeout=60).status_code == 200

    wait_until(answered, timeout=60)
