"""Ray Data on two nodes, with real daemons and a real model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

import runed
import runed.ray
from runed.errors import RunedError
from tests.cluster.conftest import BOTH_NODES, RayCluster, ray_actors, read_dataset, vectors_of
from tests.support import Golden, RunningDaemon, wait_until


@pytest.fixture
def data(shared_cluster: RayCluster) -> Any:
    return importlib.import_module("ray.data")


@pytest.fixture(scope="module")
def local(minilm_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(home=minilm_daemon.home, spawn=False) as client:
        yield client


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
    table = read_dataset(runed.ray.embed(source, on_error="column"))
    assert table["embedding"].is_valid().to_pylist() == [True, False, False, False]
    reasons = [error and error.partition(":")[0] for error in table["error"].to_pylist()]
    assert reasons == [None, "EMPTY_TEXT", None, "TEXT_TOO_LONG"]
    table = read_dataset(runed.ray.embed(source, on_error="null", truncate="end"))
    assert table["embedding"].is_valid().to_pylist() == [True, False, False, True]
    with pytest.raises(Exception, match=r'row 1 of a batch of 4, column "text": .*on_error="null"'):
        read_dataset(runed.ray.embed(source))


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
        read_dataset(runed.ray.embed(source, **options))


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
