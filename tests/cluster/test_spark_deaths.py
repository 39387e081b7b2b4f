"""A job of Spark outlives the deaths of its parts, on two hosts with a home each. It has a session of its own."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runed
import runed.spark
from tests.cluster.conftest import agree, spark_cluster, spark_session
from tests.cluster.deaths import COUNT, LONG_SECONDS, PAUSE, deaths
from tests.support import RunningDaemon


@pytest.mark.timeout(LONG_SECONDS)
def test_job_outlives_engine_daemon_worker_and_host(
    settings: dict[str, str], tmp_path: Path, minilm_daemon: RunningDaemon
) -> None:
    slowly = tmp_path / "slowly"

    def pause(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if slowly.exists():
                time.sleep(2 * PAUSE * batch.num_rows)  # in two executors
            yield batch

    options = {"spark.speculation": "true", "spark.task.maxFailures": "8", "spark.executor.memory": "512m"}
    with spark_cluster([settings, settings], tmp_path) as cluster, spark_session(cluster.url, **options) as session:
        functions: Any = importlib.import_module("pyspark.sql.functions")
        table = session.range(0, COUNT, 1, 40).withColumn("text", functions.concat(functions.lit("text "), "id"))
        result = runed.spark.embed(table.mapInArrow(pause, table.schema), role="document")
        first, second = cluster.homes
        steps = {
            "engine": first.engine,
            "daemon": first.daemon,
            "worker": cluster.python_worker,
            "host": lambda: cluster.kill(1),
        }
        with deaths(first, steps, slowly) as killed:
            rows = result.collect()
            in_time = list(killed)
        assert in_time == list(steps)  # before the job ended
        assert [len(home.daemons()) for home in (first, second)] == [1, 0]
    assert sorted(row["id"] for row in rows) == list(range(COUNT))
    some = [row for row in rows if row["id"] % 40 == 0]
    with runed.connect(home=minilm_daemon.home, spawn=False) as local:
        expected = local.embed_batch([f"text {number}" for number in range(0, COUNT, 40)], role="document")
    assert agree(some, expected)
