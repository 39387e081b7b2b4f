"""Ray Serve with a replica on each of two nodes, each with a real daemon."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pytest

import runed
from tests.cluster.conftest import RayCluster, free_port
from tests.support import Golden, RunningDaemon, short_home, wait_until


@pytest.fixture(scope="module")
def address(shared_cluster: RayCluster) -> Iterator[str]:
    serve: Any = importlib.import_module("ray.serve")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    run_serve(2)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def run_serve(replicas: int) -> None:
    """Deploy the application with a number of replicas, or change their number."""
    serve: Any = importlib.import_module("ray.serve")
    module: Any = importlib.import_module("runed.integrations.ray_serve")
    serve.run(module.Daemon.options(num_replicas=replicas).bind(), route_prefix="/")


def running(serve: Any) -> int:
    """Return the number of replicas, of which all run."""
    (application,) = serve.status().applications.values()
    states = application.deployments["Daemon"].replica_states
    return states.get("RUNNING", 0) if set(states) == {"RUNNING"} else 0


class Totals(NamedTuple):
    """Numbers of all nodes together: the texts so far, and the calls at this moment."""

    texts: int
    in_flight: int


def totals(cluster: RayCluster) -> Totals:
    found = []
    for home in cluster.homes:
        with runed.connect(home=home.path, spawn=False) as client:
            found.append(client.health())
    return Totals(sum(health.total_texts for health in found), sum(health.in_flight_requests for health in found))


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


def test_daemon_elsewhere_has_it_as_a_remote_model(address: str, minilm_golden: Golden) -> None:
    daemon = RunningDaemon(short_home(), {"RUNED_BACKEND": f"{address}/v1"})
    try:
        daemon.wait_for("STATUS_OK", timeout=120)
        with runed.connect(home=daemon.home, spawn=False) as client:
            assert minilm_golden.cosines(client.embed_batch(minilm_golden.texts)).min() >= 0.9999
    finally:
        daemon.close()
        shutil.rmtree(daemon.home)


def test_connect_is_answered_and_nothing_can_be_shut_down(address: str, shared_cluster: RayCluster) -> None:
    with httpx.Client(base_url=address, timeout=60) as http:
        answer = http.post("/runed.v1.RunedService/Embed", json={"text": "green tea"})
        assert len(answer.json()["vector"]) == 384
        refused = http.post("/runed.v1.RunedService/Embed", json={"text": ""})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
        for path in ("/runed.v1.RunedService/Shutdown", "/runed.v1.RunedService/SetCentroids", "/metrics", "/"):
            assert http.post(path, json={}).status_code == 404
    assert all(home.daemon() for home in shared_cluster.homes)


def test_cancel_reaches_the_node(address: str, shared_cluster: RayCluster) -> None:
    texts = [f"cancelled {number} " + "word " * 200 for number in range(1000)]
    body = json.dumps({"input": texts}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    before = totals(shared_cluster)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: totals(shared_cluster).in_flight, timeout=100, what="the call")
    wait_until(lambda: not totals(shared_cluster).in_flight, timeout=100, what="the end of the call")
    assert totals(shared_cluster).texts - before.texts < len(texts)


def test_replica_that_goes_loses_no_call(address: str, shared_cluster: RayCluster) -> None:
    serve: Any = importlib.import_module("ray.serve")
    over = threading.Event()

    def call(caller: int) -> list[int]:
        codes: list[int] = []
        with httpx.Client(base_url=address, timeout=300) as http:
            for number in itertools.count():
                if over.is_set():
                    return codes
                texts = [f"draining {caller} {number} {text} " + "word " * 20 for text in range(32)]
                codes.append(http.post("/v1/embeddings", json={"input": texts}).status_code)
        raise AssertionError

    with ThreadPoolExecutor(8) as pool:
        try:
            calls = [pool.submit(call, caller) for caller in range(8)]
            for count in (1, 2):
                before = totals(shared_cluster).texts
                run_serve(count)
                wait_until(lambda count=count: running(serve) == count, timeout=200, what=f"{count} replicas")  # type: ignore[misc]
                wait_until(lambda before=before: totals(shared_cluster).texts - before > 1000, timeout=200)  # type: ignore[misc]
        finally:
            over.set()
        codes = [code for done in calls for code in done.result(timeout=300)]
    assert set(codes) == {200}


def test_replica_answers_again_after_the_death_of_its_daemon(address: str, shared_cluster: RayCluster) -> None:
    for home in shared_cluster.homes:
        if daemon := home.daemon():
            daemon.kill()
            daemon.wait(60)

    def answered() -> bool:
        try:
            return httpx.post(f"{address}/v1/embeddings", json={"input": "green tea"}, timeout=60).status_code == 200
        except httpx.HTTPError:  # a busy machine
            return False

    wait_until(answered, timeout=300)
