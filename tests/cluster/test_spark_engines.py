"""All hosts of a job of Spark serve by one engine."""

from __future__ import annotations

from pathlib import Path

import pytest

import runed.spark
from tests.cluster.conftest import spark_cluster, spark_session

BOTH = {
    "spark.cores.max": "2",
    "spark.executor.memory": "512m",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "300s",
}
"""Options by which a job begins when there are executors on both hosts."""


def test_hosts_with_different_engines_are_told_before_the_first_vector(settings: dict[str, str], tmp_path: Path) -> None:
    two = [settings, settings | {"RUNED_ENGINE": "onnx"}]
    with spark_cluster(two, tmp_path) as cluster, spark_session(cluster.url, **BOTH) as session:
        table = session.createDataFrame([(f"text {number}",) for number in range(400)], "text string").repartition(8)
        with pytest.raises(Exception, match=r"have different engines: .*onnx.*; set RUNED_ENGINE=(cpu|onnx) on all nodes"):
            runed.spark.embed(table).collect()


def test_hosts_that_may_choose_take_one_engine(settings: dict[str, str], tmp_path: Path) -> None:
    own = {name: value for name, value in settings.items() if name != "RUNED_ENGINE"}
    with spark_cluster([own, own], tmp_path) as cluster, spark_session(cluster.url, **BOTH) as session:
        table = session.createDataFrame([(f"text {number}",) for number in range(400)], "text string").repartition(8)
        rows = runed.spark.embed(table, fingerprint_column="space").collect()
        assert {row["space"] for row in rows} == {runed.spark.fingerprint(session)}
        assert [len(home.daemons()) for home in cluster.homes] == [1, 1]
