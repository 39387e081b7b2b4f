"""Spark with two executors on one host, with a real daemon and a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

import runed
import runed.spark
from runed.errors import InvalidRequestError
from tests.cluster.conftest import Home, agree
from tests.support import Golden, RunningDaemon

Spark = tuple[Any, Home]


@pytest.fixture(scope="module")
def local(minilm_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(home=minilm_daemon.home, spawn=False) as client:
        yield client


def test_table_gets_a_column_of_vectors(spark: Spark, minilm_golden: Golden) -> None:
    session, home = spark
    texts = minilm_golden.texts * 3
    table = session.createDataFrame(
        [(number, text, number / 2) for number, text in enumerate(texts)], "id long, text string, x double"
    )
    result = runed.spark.embed(table.repartition(4), token_count_column="tokens", fingerprint_column="space")
    assert result.schema.simpleString() == (
        "struct<id:bigint,text:string,x:double,embedding:array<float>,tokens:int,space:string>"
    )
    rows = result.collect()
    assert len(rows) == len(texts)
    assert agree(rows, np.tile(minilm_golden.vectors, (3, 1)))
    assert {row["id"]: (row["text"], row["x"]) for row in rows} == {n: (text, n / 2) for n, text in enumerate(texts)}
    assert {row["id"]: row["tokens"] for row in rows} == dict(enumerate(minilm_golden.tokens * 3))
    assert {row["space"] for row in rows} == {runed.spark.fingerprint(session)}
    assert len(home.daemons()) == 1


def test_function_works_in_queries(spark: Spark, local: runed.Client) -> None:
    session, _ = spark
    texts = ["how do I brew tea?", "night train", "violin"]
    table = session.createDataFrame(list(enumerate(texts)), "id int, question string")
    embed_query = runed.spark.embed_udf(role="query")
    expected = local.embed_batch(texts, role="query")
    assert agree(table.select("id", embed_query("question").alias("embedding")).collect(), expected)
    session.udf.register("embed_query", embed_query)
    table.createOrReplaceTempView("questions")
    assert agree(session.sql("SELECT id, embed_query(question) AS embedding FROM questions").collect(), expected)


def test_nulls_pass_and_bad_texts_are_treated_as_asked(spark: Spark) -> None:
    session, _ = spark
    table = session.createDataFrame([(0, "one"), (1, None), (2, " "), (3, "word " * 3000)], "id int, text string")
    rows = {row["id"]: row for row in runed.spark.embed(table, on_error="column").collect()}
    assert [rows[number]["embedding"] is not None for number in range(4)] == [True, False, False, False]
    assert [(rows[number]["error"] or "").partition(":")[0] for number in range(4)] == ["", "", "EMPTY_TEXT", "TEXT_TOO_LONG"]
    embed = runed.spark.embed_udf(on_error="null", truncate="end")
    rows = {row["id"]: row for row in table.select("id", embed("text").alias("embedding")).collect()}
    assert [rows[number]["embedding"] is not None for number in range(4)] == [True, False, False, True]
    nulls = session.createDataFrame([(0, None)], "id int, text string")
    assert nulls.select(embed("text").alias("embedding")).collect()[0]["embedding"] is None
    assert runed.spark.embed(nulls).collect()[0]["embedding"] is None
    assert runed.spark.embed(table.where("id > 9")).collect() == []
    with pytest.raises(Exception, match=r'column "text": .*on_error="null" or "column" goes on'):
        runed.spark.embed(table.where("id = 2")).collect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "body"}, 'the dataset has no column "body"; its columns are "id", "text"'),
        ({"column": "id"}, 'the column "id" holds int instead of strings'),
        ({"output": "id"}, 'has a column "id" already'),
        ({"role": "reader"}, "role is 'reader'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ],
)
def test_mistake_is_told_on_the_driver(spark: Spark, options: dict[str, Any], message: str) -> None:
    session, _ = spark
    table = session.createDataFrame([(0, "one")], "id int, text string")
    with pytest.raises(InvalidRequestError, match=message):
        runed.spark.embed(table, **options)


def test_mistake_of_a_function_is_told(spark: Spark) -> None:
    session, _ = spark
    with pytest.raises(InvalidRequestError, match="use on_error"):
        runed.spark.embed_udf(on_error="column")
    with pytest.raises(InvalidRequestError, match="role is 'reader'"):
        runed.spark.embed_udf(role="reader")  # type: ignore[arg-type] # as a caller without mypy
    table = session.createDataFrame([(0, 7)], "id int, number int")
    with pytest.raises(Exception, match="holds int32 instead of strings"):
        table.select(runed.spark.embed_udf()("number")).collect()
    with pytest.raises(Exception, match=r'its fingerprint is ".*" instead of "another"'):
        table.select(runed.spark.embed_udf(fingerprint="another")("number")).collect()
    with pytest.raises(Exception, match=r"node .*/proc/nowhere"):
        table.select(runed.spark.embed_udf(home="/proc/nowhere")("number")).collect()


def test_files_are_embedded_by_tasks(spark: Spark, tmp_path: Path, local: runed.Client) -> None:
    session, _ = spark
    (tmp_path / "in").mkdir()
    for number in range(3):
        rows = {"id": range(40), "text": [f"file {number} text {row}" for row in range(40)]}
        pa_parquet.write_table(pa.table(rows), tmp_path / "in" / f"{number}.parquet")
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    result = runed.spark.embed_files(session, source, output, role="document")
    assert (result.count, result.failed) == (120, 0)
    assert runed.spark.embed_files(session, source, output, role="document") == result
    table = pa_parquet.read_table(tmp_path / "out" / "1.parquet")
    vectors = np.stack(table["embedding"].combine_chunks().to_numpy(zero_copy_only=False))
    expected = local.embed_batch([f"file 1 text {row}" for row in range(40)], role="document")
    assert (np.sum(vectors * expected, axis=1) >= 0.9999).all()


def test_second_task_with_the_same_texts_computes_nothing(spark: Spark) -> None:
    """As with a speculative task on the same host: its texts are in the cache of the daemon, or on their way."""
    session, home = spark
    texts = [(number % 300, f"speculative {number % 300}") for number in range(600)]
    table = session.createDataFrame(texts, "id int, text string").repartitionByRange(2, "id")
    twins = table.unionAll(table)  # tasks of both halves run at the same time
    with runed.connect(home=home.path, spawn=False) as client:
        runed.spark.fingerprint(session)
        before = client.health()
        assert runed.spark.embed(twins).count() == 1200
        after = client.health()
        tokens = sum(client.count_tokens({f"speculative {number}" for number in range(300)}))
    # The engine counts the tokens of a text once, and a text is asked for four times.
    assert after.total_tokens - before.total_tokens == tokens
    assert (after.cache_hits + after.shared_texts) - (before.cache_hits + before.shared_texts) == 900
