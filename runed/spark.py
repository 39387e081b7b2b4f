"""runed on Spark: a function for columns of texts, and whole tables and files, embedded by the daemons of all executor hosts.

    import runed.spark

    documents = runed.spark.embed(spark.read.parquet("s3a://bucket/in"), "text", "embedding", role="document")
    spark.udf.register("embed_query", runed.spark.embed_udf(role="query"))

Each host needs runed, and a home of its own on a disk of its own. It has one daemon, however many executors and workers it has.
Needs `runed[spark]`; it uses the API of Spark 3.5, and works with Spark 4 and Spark Connect.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import runed
from runed.client.options import Options
from runed.errors import InvalidRequestError
from runed.extras import needed
from runed.jobs import nodes, parquet
from runed.jobs.columns import Batch, Columns, OnError, Space
from runed.jobs.job import JobResult
from runed.jobs.nodes import Fingerprint
from runed.jobs.partition import PartitionJob, summed

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions, Role, Truncate
    from runed.client.types import Info
    from runed.jobs.partition import FileOptions

__all__ = ["Fingerprint", "embed", "embed_files", "embed_udf", "fingerprint"]


def embed_udf(
    *,
    role: Role | None = None,
    instruction: str = "",
    dimensions: int | None = None,
    truncate: Truncate = "none",
    model: str | None = None,
    on_error: OnError = "raise",
    fingerprint: str | None = None,
    home: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> Any:
    """Make a function of a column of texts that returns their vectors, as `array<float>`.

        embed_query = runed.spark.embed_udf(role="query")
        table.select("id", embed_query("question").alias("vector"))
        spark.udf.register("embed_query", embed_query)
        spark.sql("SELECT id, embed_query(question) AS vector FROM questions")

    It is an iterator pandas UDF. The first worker of a host starts its daemon, which fetches engine and model. Texts wait in
    the bulk lane. A null text has a null vector. The client of a worker waits for an engine or a daemon that is started again.
    Everything else is repeated by Spark alone, a task at a time. The texts of a repeated or speculative task are in the cache
    of a daemon that has had them before, or on their way.

    Args:
        role: As for `runed.Client.embed`, like the next four.
        instruction: The task of queries.
        dimensions: The number of values of each vector.
        truncate: The treatment of a text that is too long.
        model: The name of the model; None means the default model of each daemon.
        on_error: The treatment of a text that cannot be embedded: "raise" fails the task, "null" leaves its vector null. An
            error that is not of a single text always fails the task.
        fingerprint: The fingerprint that all vectors must have. `runed.spark.fingerprint` asks a host for it, and daemons that
            are started then have the engine of that host. Without it, hosts with different models or engines are not noticed.
        home: The directory of the daemon on each host; None means `RUNED_HOME` or `~/.runed` there.
        timeout: Seconds that the start of the daemon may take, and that may pass without a vector; None means no limit.

    Raises:
        InvalidRequestError: An option has a value that is not accepted.
    """
    if on_error == "column":
        raise InvalidRequestError('a function has no column for errors; use on_error="null", or runed.spark.embed')
    worker = _Worker(
        Columns(on_error=on_error),
        {"role": role, "instruction": instruction, "dimensions": dimensions, "truncate": truncate, "model": model},
        nodes.Node(home=home, model=model, timeout=timeout, expected=fingerprint),
    )

    def embed_texts(batches: Any) -> Any:
        return worker.series(batches)

    pandas = _spark("pandas")
    series = Iterator[pandas.Series]  # type: ignore[name-defined] # pandas is imported when it is used
    embed_texts.__annotations__ = {"batches": series, "return": series}
    return _spark("pyspark.sql.functions").pandas_udf(embed_texts, "array<float>")


def embed(
    table: Any,
    column: str = "text",
    output: str = "embedding",
    *,
    role: Role | None = None,
    instruction: str = "",
    dimensions: int | None = None,
    truncate: Truncate = "none",
    model: str | None = None,
    on_error: OnError = "raise",
    error_column: str = "error",
    token_count_column: str | None = None,
    fingerprint_column: str | None = None,
    fingerprint: str | None = None,
    home: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> Any:
    """Add a column of vectors to a table, whose other columns travel along.

    It uses `mapInArrow`, which costs less than a function of a column. All hosts must give vectors of the same space: if no
    fingerprint is given, one host is asked for its own first, by a job of one task, which starts its daemon. Hosts without a
    daemon then start one with the same engine.

    Args:
        table: The table, a DataFrame of Spark.
        column: The column of the texts.
        output: The column of the vectors, `array<float>`; the table must not have it yet.
        role: As for `embed_udf`, like all that are not below.
        instruction: As above.
        dimensions: As above.
        truncate: As above.
        model: As above.
        on_error: As for `embed_udf`; "column" tells the error in `error_column`, too.
        error_column: The column of errors, each "REASON: message" or null.
        token_count_column: The column of the numbers of tokens that the model read; None for no such column.
        fingerprint_column: The column of the fingerprints of the vectors; None for no such column.
        fingerprint: As for `embed_udf`; None asks one host.
        home: As above.
        timeout: As above.

    Returns:
        A DataFrame with the columns of `table` and the new ones. It is computed when it is read.

    Raises:
        InvalidRequestError: The table lacks the column or has another type in it, or an option has a value that is not
            accepted.
    """
    columns = Columns(
        text=column,
        vector=output,
        on_error=on_error,
        error=error_column,
        token_count=token_count_column,
        fingerprint=fingerprint_column,
    )
    types = _spark("pyspark.sql.types")
    columns.check(table.columns)
    found = table.schema[column].dataType
    if not isinstance(found, (types.StringType, types.CharType, types.VarcharType)):
        raise InvalidRequestError(
            f'the column "{column}" holds {found.simpleString()} instead of strings; cast it, or name another column'
        )
    node = nodes.Node(home=home, model=model, timeout=timeout)
    options: EmbedOptions = {
        "role": role,
        "instruction": instruction,
        "dimensions": dimensions,
        "truncate": truncate,
        "model": model,
    }
    Options(**options)  # a wrong option fails here, and not on a host
    expected = fingerprint or _ask(table.sparkSession, node, dimensions)
    worker = _Worker(columns, options, replace(node, expected=expected))
    added = {
        output: types.ArrayType(types.FloatType()),
        token_count_column: types.IntegerType(),
        fingerprint_column: types.StringType(),
        error_column: types.StringType(),
    }
    schema = types.StructType([*table.schema.fields, *(types.StructField(name, added[name]) for name in columns.added)])

    def embed_batches(batches: Iterator[Any]) -> Iterator[Any]:
        return worker.batches(batches)

    return table.mapInArrow(embed_batches, schema)


def fingerprint(
    session: Any,
    *,
    model: str | None = None,
    dimensions: int | None = None,
    home: str | os.PathLike[str] | None = None,
) -> Fingerprint:
    """Ask one host for the fingerprint of its vectors. Its daemon is started, and fetches engine and model.

    Args:
        session: The Spark session.
        model: As for `embed_udf`.
        dimensions: As for `embed_udf`; fewer values have another fingerprint.
        home: As for `embed_udf`.

    Returns:
        The fingerprint, a string that also tells other hosts which engine to start.
    """
    return _ask(session, nodes.Node(home=home, model=model), dimensions)


def embed_files(session: Any, source: str, output: str, **options: Unpack[FileOptions]) -> JobResult:
    """Embed many files on all hosts, one task a file: the parts of `runed embed --batch 'in/*.parquet' -o out/`.

    A file counts once, however often a task or a host dies: `runed.jobs.partition` tells how. A job that was interrupted goes
    on when it is started again. Paths are those of pyarrow, such as "s3://bucket/in" and not "s3a:". Local paths must be on a
    disk that all hosts share.

    Args:
        session: The Spark session.
        source: A directory, a glob such as "s3://bucket/in/*.parquet", or a file.
        output: The directory of the results.
        options: The options of `runed.jobs.partition.FileOptions`.

    Returns:
        The number of texts of all files, and of those without a vector.

    Raises:
        RunedError: As for `runed.jobs.partition.PartitionJob.begin`. An error on a host fails the job of Spark.
    """
    job = PartitionJob(source, output, options)
    parts = job.begin()
    if not parts:
        return summed([])
    expected = _ask(session, job.node, options.get("dimensions"))

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        arrow = parquet.pyarrow()
        for batch in batches:
            results = [job.run_on_node(parts[number], expected) for number in batch.column(0).to_pylist()]
            columns = [[result.texts.count for result in results], [result.texts.failed for result in results]]
            yield arrow.RecordBatch.from_arrays([arrow.array(column, arrow.int64()) for column in columns], ["count", "failed"])

    rows = session.range(0, len(parts), 1, len(parts)).mapInArrow(run, "count long, failed long").collect()
    return summed(JobResult(count=row["count"], failed=row["failed"]) for row in rows)


class _Worker:
    """The part of a function that runs in a worker. The driver pickles it, so that it holds no client.

    Args:
        columns: The names of the columns.
        options: The options of all texts.
        node: The daemon of each host.
    """

    def __init__(self, columns: Columns, options: EmbedOptions, node: nodes.Node) -> None:
        Options(**options)  # a wrong option fails here, and not on a host
        self._columns = columns
        self._options: EmbedOptions = {**options, "lane": "bulk"}
        self._node = node

    def series(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield a pandas Series of vectors for each Series of texts."""
        pandas, arrow = _spark("pandas"), parquet.pyarrow()
        embed_column = self._open()
        for texts in batches:
            vectors = embed_column(arrow.Array.from_pandas(texts))[self._columns.vector]
            values = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
            rows = iter(values)
            found = [next(rows) if is_there else None for is_there in vectors.is_valid().to_pylist()]
            yield pandas.Series(found, index=texts.index, dtype=object)

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield each batch of Arrow with the new columns."""
        arrow = parquet.pyarrow()
        embed_column = self._open()
        for batch in batches:
            added = embed_column(batch.column(batch.schema.get_field_index(self._columns.text)))
            # Spark has no lists of a fixed size.
            added[self._columns.vector] = added[self._columns.vector].cast(arrow.list_(arrow.float32()))
            yield arrow.RecordBatch.from_arrays([*batch.columns, *added.values()], [*batch.schema.names, *added])

    def _open(self) -> Callable[[Any], dict[str, Any]]:
        """Connect to the daemon of this host, and return the function that embeds an array of texts."""
        client, info = _connected(self._node, os.getpid())
        dim = self._options["dimensions"] or info.vector_dim
        space = Space(self._node.expected)
        if dim == info.vector_dim:  # the fingerprint of shorter vectors is another one
            space.check([info.fingerprint], nodes.name())

        def embed_column(texts: Any) -> dict[str, Any]:
            part = Batch(self._columns, texts)
            part.take(client.embed_stream(part.texts.items(), **self._options))
            space.check(part.fingerprints, nodes.name())
            return part.arrays(dim)

        return embed_column


@functools.lru_cache(maxsize=4)
def _connected(node: nodes.Node, _pid: int) -> tuple[runed.Client, Info]:
    """Return the client of this worker, which serves many tasks, and the description of its daemon.

    Spark forks its workers. The pid keeps a worker from the client of the process that it was forked from.
    """
    info = node.prepare()
    return node.connect(), info


def _ask(session: Any, node: nodes.Node, dimensions: int | None) -> Fingerprint:
    def run(batches: Iterator[Any]) -> Iterator[Any]:
        arrow = parquet.pyarrow()
        for _ in batches:
            found = node.fingerprint(dimensions)
            facts = {"value": str(found), **found.facts}
            yield arrow.RecordBatch.from_pylist([facts])

    schema = ", ".join(f"{name} string" for name in ("value", *Fingerprint.__slots__))
    (row,) = session.range(0, 1, 1, 1).mapInArrow(run, schema).collect()
    return Fingerprint(**row.asDict())


def _spark(module: str) -> Any:
    return needed(module, "spark")
