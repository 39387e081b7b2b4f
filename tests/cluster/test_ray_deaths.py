"""A job of Ray Data outlives the deaths of its parts. It has a cluster of its own, and so a module of its own."""

from __future__ import annotations

import importlib

import numpy as np
import psutil
import pyarrow as pa
import pytest

import runed
import runed.ray
from tests.cluster.conftest import BOTH_NODES, RayCluster, ray_actors, read_dataset, vectors_of
from tests.cluster.deaths import LONG_SECONDS, deaths
from tests.support import RunningDaemon, wait_until

COUNT = 20_000


@pytest.mark.timeout(LONG_SECONDS)
def test_job_outlives_engine_daemon_actor_and_node(shared_cluster: RayCluster, minilm_daemon: RunningDaemon) -> None:
    data = importlib.import_module("ray.data")
    first, _ = shared_cluster.homes
    source = data.from_arrow(pa.table({"id": range(COUNT), "text": [f"text {number}" for number in range(COUNT)]}))
    dataset = runed.ray.embed(source.repartition(100), role="document", concurrency=BOTH_NODES)

    def actor() -> psutil.Process:
        return wait_until(ray_actors)[0]

    steps = {"engine": first.engine, "daemon": first.daemon, "actor": actor, "node": lambda: shared_cluster.kill(1)}
    with deaths(first, steps) as killed:
        table = read_dataset(dataset)
        in_time = list(killed)
    assert in_time == list(steps)  # before the job ended
    assert table["id"].to_pylist() == list(range(COUNT))
    assert table["embedding"].null_count == 0
    rows = np.random.default_rng(1).choice(COUNT, 500, replace=False)
    with runed.connect(home=minilm_daemon.home, spawn=False) as local:
        expected = local.embed_batch([f"text {row}" for row in rows], role="document")
    assert (np.sum(vectors_of(table.take(rows)) * expected, axis=1) >= 0.9999).all()
