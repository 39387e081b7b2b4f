"""Ray Data and Ray Serve on two nodes, with real daemons and a real model. In the end, one node dies.

All tests are in one module, since they share a cluster.
"""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import psutil
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

import runed
import runed.ray
from runed.errors import RunedError
from tests.cluster.conftest import BOTH_NODES, RayCluster, free_port, ray_actors, read_dataset, vectors_of
from tests.cluster.deaths import COUNT, LONG_SECONDS, PAUSE, deaths
from tests.cluster.test_documentation import run_examples
from tests.support import Golden, RunningDaemon, short_home, wait_until


@pytest.fixture
def data(shared_cluster: RayCluster) -> Any:
    return importlib.import_module("ray.data")


@pytest.fixture(scope="module")
def local(minilm_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(home=minilm_daemon.home, spawn=False) as client:
        yield client


def test_examples_print_what_stands_beside_them(shared_cluster: RayCluster, tmp_path: Path) -> None:
    run_examples("Ray Data", tmp_path, RAY_ADDRESS=shared_cluster.address)


def test_vectors_are_those_of_a_local_daemon(shared_cluster: RayCluster, data: Any, minilm_golden: Golden) -> None:
    texts = minilm_golden.texts * 20
    source = data.from_arrow(pa.table({"id": range(len(texts)), "text": texts, "other": texts})).repartition(8)
    dataset = runed.ray.embed(source, token_count_column="tokens", fingerprint_column="space", batch_size=16)
    table = read_dataset(dataset)
    assert table.column_names == ["id", "text", "other", "embedding", "tokens", "space"]
    assert table["embedding"].type == pa.list_(pa.float32(), 384)
    assert table["id"].to_pylist() == list(range(len(texts)))
    assert table["text"].to_pylist() == table["other"].to_pylist() == texts
    assert table["tokens"].to_pylist() == minilm_golden.tokens * 20
    assert table["space"].unique().to_pylist() == [runed.ray.fingerprint()]
    for start in range(0, len(texts), len(minilm_golden.texts)):
        part = vectors_of(table.slice(start, len(minilm_golden.texts)))
        assert minilm_golden.cosines(part).min() >= 0.9999


def test_nodes_have_one_daemon_each_which_outlives_its_actors(shared_cluster: RayCluster, data: Any) -> None:
    ray = importlib.import_module("ray")
    texts = [f"text {number}" for number in range(200)]
    source = data.from_arrow(pa.table({"id": range(200), "text": texts})).repartition(20)
    pool = ray.data.ActorPoolStrategy(size=BOTH_NODES)
    dataset = source.map_batches(runed.ray.Embed, batch_size=10, compute=pool, num_cpus=1)
    assert read_dataset(dataset)["embedding"].null_count == 0
    before = [home.daemons() for home in shared_cluster.homes]
    assert [len(pids) for pids in before] == [1, 1]
    wait_until(lambda: not ray_actors(), timeout=120, what="the end of all actors")
    assert read_dataset(runed.ray.embed(source))["embedding"].null_count == 0
    assert [home.daemons() for home in shared_cluster.homes] == before


@pytest.mark.parametrize("batch_format", ["default", "numpy", "pandas", "pyarrow"])
def test_batches_of_all_formats_give_lists_of_floats_and_nulls(data: Any, batch_format: str, local: runed.Client) -> None:
    ray = importlib.import_module("ray")
    rows = {"id": range(6), "text": ["one", None, "two", "three", None, "four"], "score": [0.5, None, 1.5, 2.5, 3.5, 4.5]}
    dataset = data.from_arrow(pa.table(rows)).map_batches(
        runed.ray.Embed,
        fn_constructor_kwargs={"column": "text", "output": "vector", "role": "document"},
        batch_size=4,
        batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    table = read_dataset(dataset)
    assert table["vector"].type == pa.list_(pa.float32(), 384)
    assert table["vector"].is_valid().to_pylist() == [True, False, True, True, False, True]
    expected = local.embed_batch(["one", "two", "three", "four"], role="document")
    found = vectors_of(table.filter(table["vector"].is_valid()), "vector")
    assert (np.sum(found * expected, axis=1) >= 0.9999).all()
    assert table["text"].to_pylist() == rows["text"]


def test_bad_texts_are_treated_as_asked(data: Any) -> None:
    source = data.from_arrow(pa.table({"id": range(4), "text": ["one", " ", None, "word " * 3000]}))
    table = read_dataset(runed.ray.embed(source, on_error="column", concurrency=1))
    assert table["embedding"].is_valid().to_pylist() == [True, False, False, False]
    reasons = [error and error.partition(":")[0] for error in table["error"].to_pylist()]
    assert reasons == [None, "EMPTY_TEXT", None, "TEXT_TOO_LONG"]
    table = read_dataset(runed.ray.embed(source, on_error="null", truncate="end", concurrency=1))
    assert table["embedding"].is_valid().to_pylist() == [True, False, False, True]
    with pytest.raises(Exception, match=r'row 1 of a batch of 4, column "text": .*on_error="null"'):
        read_dataset(runed.ray.embed(source, concurrency=1))


def test_empty_blocks_pass(data: Any) -> None:
    source = data.from_arrow(pa.table({"id": range(3), "text": ["a", "b", "c"]}))
    table = read_dataset(runed.ray.embed(source.filter(lambda row: row["id"] == 1).repartition(3)))
    assert table["id"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "body"}, 'the dataset has no column "body"; its columns are "id", "text"'),
        ({"column": "id"}, 'the column "id" holds int64 instead of strings'),
        ({"output": "text"}, 'two columns have the name "text"'),
        ({"role": "reader"}, 'role is \'reader\', but must be one of None, "query", "document"'),
        ({"fingerprint": "another"}, 'has another model or engine: its fingerprint is ".*" instead of "another"'),
        ({"home": "/proc/nowhere", "fingerprint": "any"}, "node .*: .*/proc/nowhere.* set RUNED_HOME for them, or give `home`"),
    ],
)
def test_mistake_is_told(data: Any, options: dict[str, Any], message: str) -> None:
    source = data.from_arrow(pa.table({"id": range(3), "text": ["a", "b", "c"]}))
    with pytest.raises(Exception, match=message):
        read_dataset(runed.ray.embed(source, concurrency=1, **options))


def test_node_that_cannot_start_a_daemon_is_told_before_the_job(data: Any) -> None:
    source = data.from_arrow(pa.table({"id": range(3), "text": ["a", "b", "c"]}))
    with pytest.raises(RunedError, match=r"node .*: .*/proc/nowhere"):
        runed.ray.embed(source, home="/proc/nowhere")


def test_files_are_embedded_on_all_nodes(
    shared_cluster: RayCluster,
    tmp_path: Any,
    local: runed.Client,
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        rows = {"id": range(50), "text": [f"file {number} text {row}" for row in range(50)]}
        pa_parquet.write_table(pa.table(rows), tmp_path / "in" / f"{number}.parquet")
    done: list[tuple[int, int]] = []
    source, output = str(tmp_path / "in" / "*.parquet"), str(tmp_path / "out")
    result = runed.ray.embed_files(source, output, role="document", on_progress=lambda *state: done.append(state))
    assert (result.count, result.failed, done[-1]) == (200, 0, (4, 4))
    assert runed.ray.embed_files(source, output, role="document") == result
    table = pa_parquet.read_table(tmp_path / "out" / "2.parquet")
    expected = local.embed_batch([f"file 2 text {row}" for row in range(50)], role="document")
    assert (np.sum(vectors_of(table) * expected, axis=1) >= 0.9999).all()
    with pytest.raises(RunedError, match="of other options"):
        runed.ray.embed_files(source, output, role="query")


# Ray Serve


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


class TestServe:
    """A replica on each of the two nodes."""

    @pytest.fixture(scope="class")
    def address(self, shared_cluster: RayCluster) -> Iterator[str]:
        serve: Any = importlib.import_module("ray.serve")
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        run_serve(2)
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()

    def test_both_nodes_answer_the_openai_api(self, address: str, shared_cluster: RayCluster, minilm_golden: Golden) -> None:
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

    def test_daemon_elsewhere_has_it_as_a_remote_model(self, address: str, minilm_golden: Golden) -> None:
        daemon = RunningDaemon(short_home(), {"RUNED_BACKEND": f"{address}/v1"})
        try:
            daemon.wait_for("STATUS_OK", timeout=120)
            with runed.connect(home=daemon.home, spawn=False) as client:
                assert minilm_golden.cosines(client.embed_batch(minilm_golden.texts)).min() >= 0.9999
        finally:
            daemon.close()
            shutil.rmtree(daemon.home)

    def test_connect_is_answered_and_nothing_can_be_shut_down(self, address: str, shared_cluster: RayCluster) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            answer = http.post("/runed.v1.RunedService/Embed", json={"text": "green tea"})
            assert len(answer.json()["vector"]) == 384
            refused = http.post("/runed.v1.RunedService/Embed", json={"text": ""})
            assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
            for path in ("/runed.v1.RunedService/Shutdown", "/runed.v1.RunedService/SetCentroids", "/metrics", "/"):
                assert http.post(path, json={}).status_code == 404
        assert all(home.daemon() for home in shared_cluster.homes)

    def test_cancel_reaches_the_node(self, address: str, shared_cluster: RayCluster) -> None:
        texts = [f"cancelled {number} " + "word " * 200 for number in range(1000)]
        body = json.dumps({"input": texts}).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        before = totals(shared_cluster)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: totals(shared_cluster).in_flight, timeout=100, what="the call")
        wait_until(lambda: not totals(shared_cluster).in_flight, timeout=100, what="the end of the call")
        assert totals(shared_cluster).texts - before.texts < len(texts)

    def test_replica_that_goes_loses_no_call(self, address: str, shared_cluster: RayCluster) -> None:
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
                for count in (1, 2):  # with more texts in between than are on their way at a time
                    before = totals(shared_cluster).texts
                    run_serve(count)
                    wait_until(lambda count=count: running(serve) == count, timeout=200, what=f"{count} replicas")  # type: ignore[misc]
                    wait_until(lambda before=before: totals(shared_cluster).texts - before > 500, timeout=200)  # type: ignore[misc]
            finally:
                over.set()
            codes = [code for done in calls for code in done.result(timeout=300)]
        assert set(codes) == {200}

    def test_replica_answers_again_after_the_death_of_its_daemon(self, address: str, shared_cluster: RayCluster) -> None:
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


# Deaths


@pytest.mark.timeout(LONG_SECONDS)
def test_job_outlives_engine_daemon_actor_and_node(
    shared_cluster: RayCluster, minilm_daemon: RunningDaemon, tmp_path: Path
) -> None:
    data, slowly = importlib.import_module("ray.data"), tmp_path / "slowly"
    first, _ = shared_cluster.homes
    source = data.from_arrow(pa.table({"id": range(COUNT), "text": [f"text {number}" for number in range(COUNT)]}))

    def pause(block: dict[str, Any]) -> dict[str, Any]:
        if slowly.exists():
            time.sleep(PAUSE * len(block["text"]))
        return block

    slowed = source.repartition(100).map_batches(pause, batch_size=None, num_cpus=0, concurrency=1)
    dataset = runed.ray.embed(slowed, role="document", concurrency=BOTH_NODES)

    def actor() -> psutil.Process:
        return wait_until(ray_actors)[0]

    steps = {"engine": first.engine, "daemon": first.daemon, "actor": actor, "node": lambda: shared_cluster.kill(1)}
    with deaths(first, steps, slowly) as killed:
        table = read_dataset(dataset)
        in_time = list(killed)
    assert in_time == list(steps)  # before the job ended
    assert table["id"].to_pylist() == list(range(COUNT))
    assert table["embedding"].null_count == 0
    rows = np.random.default_rng(1).choice(COUNT, 500, replace=False)
    with runed.connect(home=minilm_daemon.home, spawn=False) as local:
        expected = local.embed_batch([f"text {row}" for row in rows], role="document")
    assert (np.sum(vectors_of(table.take(rows)) * expected, axis=1) >= 0.9999).all()
