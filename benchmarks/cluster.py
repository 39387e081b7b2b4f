"""Measure what Ray Data and Spark cost beside `embed_stream` on the same machine: `python -m benchmarks.cluster`.

It needs the packages of `make test-cluster`. Each way embeds a smaller and a larger number of new texts of MiniLM, in turns.
The rate is that of the difference, so that the start of a job does not count; it is told beside it. One daemon serves all.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

import runed
import runed.ray
import runed.spark
from benchmarks.lab import say
from benchmarks.models import MINILM
from tests.support import running_daemon
from tools.engine import programs_folder

Way = Callable[[list[str]], object]
"""A way to embed texts. It returns when all vectors are there."""

_numbers = itertools.count()


def new_texts(count: int) -> list[str]:
    """Return short texts that no earlier call has returned."""
    return [f"{number} {MINILM.text(number)}" for number in itertools.islice(_numbers, count)]


def by_hand(client: runed.Client) -> Way:
    """Return the way by `embed_stream`."""
    return lambda texts: sum(1 for _ in client.embed_stream(enumerate(texts), lane="bulk", role="document"))


def by_batches(client: runed.Client) -> Way:
    """Return the way by `embed_batch`."""
    return lambda texts: client.embed_batch(texts, lane="bulk", role="document")


def by_ray(texts: list[str]) -> object:
    """Embed by Ray Data."""
    data: Any = importlib.import_module("ray.data")
    dataset = data.from_arrow(pa.table({"text": texts})).repartition(8)
    return runed.ray.embed(dataset, role="document").materialize()


def by_spark_table(session: Any) -> Way:  # noqa: ANN401 # Spark is not there for mypy
    """Return the way by `mapInArrow` of Spark."""

    def embed(texts: list[str]) -> object:
        table = session.createDataFrame([(text,) for text in texts], "text string").repartition(2)
        return runed.spark.embed(table, role="document").write.format("noop").mode("overwrite").save()

    return embed


def by_spark_function(session: Any) -> Way:  # noqa: ANN401 # as above
    """Return the way by a function of Spark."""
    function = runed.spark.embed_udf(role="document")

    def embed(texts: list[str]) -> object:
        table = session.createDataFrame([(text,) for text in texts], "text string").repartition(2)
        return table.select(function("text").alias("v")).write.format("noop").mode("overwrite").save()

    return embed


def by_files(texts: list[str]) -> object:
    """Embed by tasks of Ray over four files."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        for number in range(4):
            pa_parquet.write_table(pa.table({"text": texts[number::4]}), source / f"{number}.parquet")
        return runed.ray.embed_files(str(source), str(Path(folder, "out")), role="document")


@contextmanager
def ways() -> Iterator[dict[str, Way]]:
    """Start a daemon, Ray and Spark, and yield all ways."""
    with ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(programs_folder() / "llama-server", MINILM.file, RUNED_IDLE_TIMEOUT="0"))
        os.environ |= {"RUNED_HOME": str(daemon.home), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would send them to its makers
        client = stack.enter_context(runed.connect(spawn=False))
        ray: Any = importlib.import_module("ray")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=200 * 2**20)
        stack.callback(ray.shutdown)
        importlib.import_module("ray.data").DataContext.get_current().enable_progress_bars = False
        builder: Any = importlib.import_module("pyspark.sql").SparkSession.builder
        session = builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
        stack.callback(session.stop)
        session.sparkContext.setLogLevel("ERROR")
        yield {
            "`embed_stream` by hand": by_hand(client),
            "`embed_batch` by hand": by_batches(client),
            "Ray Data, `runed.ray.embed`": by_ray,
            "Ray, `embed_files` of four files": by_files,
            "Spark, `runed.spark.embed`": by_spark_table(session),
            "Spark, `embed_udf`": by_spark_function(session),
        }


def measure(way: Way, small: int, large: int) -> tuple[float, float]:
    """Return the rate of a way in texts per second, and the seconds of its start."""
    seconds = []
    for count in (small, large):
        texts = new_texts(count)
        began = time.monotonic()
        way(texts)
        seconds.append(time.monotonic() - began)
    rate = (large - small) / (seconds[1] - seconds[0])
    return rate, seconds[0] - small / rate


def main() -> int:
    """Measure all ways in turns, and print a table. Return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="Measure Ray Data and Spark.")
    parser.add_argument("--small", type=int, default=1000, metavar="TEXTS")
    parser.add_argument("--large", type=int, default=5000, metavar="TEXTS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="WORD", help="only ways whose names have this word, beside the first one")
    arguments = parser.parse_args()
    with ways() as all_ways:
        first, *_ = all_ways
        chosen = {name: way for name, way in all_ways.items() if name == first or arguments.only in name}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for way in chosen.values():
            way(new_texts(200))  # the first job of a runner starts its processes
        for _ in range(arguments.rounds):
            for name, way in chosen.items():
                results[name].append(measure(way, arguments.small, arguments.large))
                say(f"  {name}: {results[name][-1][0]:.1f} texts/s, start {results[name][-1][1]:.1f} s")
    print("| way | texts/s | against `embed_stream` | start of a job |")
    print("|---|---|---|---|")
    for name, found in results.items():
        ratio = statistics.median(rate / base for (rate, _), (base, _) in zip(found, results[first], strict=True))
        rate, start = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"| {name} | {rate:.1f} | x {ratio:.2f} | {start:.1f} s |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
