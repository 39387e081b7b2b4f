"""runed on Ray: the texts of a Ray dataset, or of many files, embedded by the daemons of all nodes; needs `runed[ray]`.

    import ray
    import runed.ray

    dataset = runed.ray.embed(ray.data.read_parquet("s3://bucket/in"), column="text", role="document")
    dataset.write_parquet("s3://bucket/out")

Each node needs runed, and a home of its own on a disk of its own. It has one daemon, however many actors it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

import runed
from runed.jobs import nodes, parquet
from runed.jobs.columns import Batch, Columns, OnError, Space
from runed.jobs.nodes import Fingerprint
from runed.jobs.partition import Part, PartitionJob, PartResult, summed
from runed.jobs.ray_nodes import Shape, ask, of_ray, results_of

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions, Role, Truncate
    from runed.jobs.job import JobResult
    from runed.jobs.partition import FileOptions

__all__ = ["BATCH_SIZE", "Embed", "Fingerprint", "embed", "embed_files", "fingerprint"]

BATCH_SIZE = 256
"""Rows of a batch. An actor has four batches in flight, which keep an engine busy, and a killed actor loses little."""

_AHEAD = 2
"""Parts of a job that wait or run, for each node."""

_CANCEL_SECONDS = 10.0
"""Most seconds to wait for the end of tasks that were cancelled."""


class Embed:
    """Embeds the batches of a dataset, for `ray.data.Dataset.map_batches`. `runed.ray.embed` calls that with sensible numbers.

        dataset.map_batches(
            runed.ray.Embed,
            fn_constructor_kwargs={"column": "text", "role": "document"},
            batch_size=runed.ray.BATCH_SIZE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    The first actor of a node starts its daemon, which fetches engine and model. All others use it. Texts wait in the bulk lane,
    so that a program on the node that embeds a single text goes before them. Rows keep their order and their other columns.
    Vectors are fixed-size lists of float32, also if the batches are of NumPy or pandas. A null text has a null vector.

    Args:
        column: The column of the texts.
        output: The column of the vectors; the dataset must not have it yet.
        role: As for `runed.Client.embed`, like the next four.
        instruction: The task of queries.
        dimensions: The number of values of each vector.
        truncate: The treatment of a text that is too long.
        model: The name of the model; None means the default model of each daemon.
        on_error: The treatment of a text that cannot be embedded: "raise" ends the job, "null" leaves its vector null, and
            "column" tells the error in `error_column`, too. An error that is not of a single text always ends the job.
        error_column: The column of errors, each "REASON: message" or null.
        token_count_column: The column of the numbers of tokens that the model read; None for no such column.
        fingerprint_column: The column of the fingerprints of the vectors; None for no such column.
        fingerprint: The fingerprint that all vectors must have. `runed.ray.fingerprint` asks a node for it, and daemons that
            are started then have the engine of that node. Without it, nodes with different models or engines are not noticed.
        home: The directory of the daemon on each node; None means `RUNED_HOME` or `~/.runed` there.
        timeout: Seconds that the start of the daemon, and each batch, may take; None means no limit.

    Raises:
        InvalidRequestError: An option has a value that is not accepted, or the dataset lacks the column or has another type
            in it.
        RunedError: A node has another model than `fingerprint` says; or a daemon cannot be started, or cannot get its engine or
            model.
    """

    def __init__(
        self,
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
    ) -> None:
        self._columns = Columns(
            text=column,
            vector=output,
            on_error=on_error,
            error=error_column,
            token_count=token_count_column,
            fingerprint=fingerprint_column,
        )
        self._options: EmbedOptions = {
            "role": role,
            "instruction": instruction,
            "dimensions": dimensions,
            "truncate": truncate,
            "lane": "bulk",
            "model": model,
        }
        self._node = nodes.Node(home=home, model=model, timeout=timeout, expected=fingerprint)
        info = self._node.prepare()
        self._space = Space(fingerprint)
        self._dim = dimensions or info.vector_dim
        if self._dim == info.vector_dim:  # the fingerprint of shorter vectors is another one
            self._space.check([info.fingerprint], nodes.name())
        self._client: runed.AsyncClient | None = None
        self._tasks = set[asyncio.Task[Any] | None]()

    async def __call__(self, batch: Any) -> Any:
        """Add the columns to a batch, and return it as a table of pyarrow."""
        # Ray keeps no reference to its task, and asyncio only a weak one. While the client waits for a daemon that is started
        # again, the garbage collector could take task and batch away, and the job would fail with "GeneratorExit".
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await self._embedded(batch)
        finally:
            self._tasks.discard(task)

    async def _embedded(self, batch: Any) -> Any:
        table = _as_table(batch)
        if not table.num_rows and not table.num_columns:
            return batch  # Ray makes empty blocks that have lost their columns
        self._columns.check(table.column_names)
        part = Batch(self._columns, table.column(self._columns.text))
        client = await self._connected()
        outcomes = await client.embed_items(part.texts.values(), **self._options)
        part.take(zip(part.texts, outcomes, strict=True))
        self._space.check(part.fingerprints, nodes.name())
        for name, array in part.arrays(self._dim).items():
            table = table.append_column(name, array)
        return table

    async def _connected(self) -> runed.AsyncClient:
        """Return the client of the actor's event loop."""
        if self._client is None:
            # Several batches may come here at once. All but one of their clients are dropped before they open a connection.
            client = await runed.connect_async(home=self._node.home, timeout=self._node.timeout)
            self._client = self._client or client  # type: ignore[redundant-expr] # another batch may have set it meanwhile
        return self._client


def embed(
    dataset: Any,
    column: str = "text",
    output: str = "embedding",
    *,
    model: str | None = None,
    home: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    concurrency: int | None = None,
    batch_size: int = BATCH_SIZE,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Any,
) -> Any:
    """Embed a column of a Ray dataset by one actor a node, as `Embed` does.

    The numbers are those of the nodes that are there now. An actor counts for all processors of its node but one, since the
    engine uses them; the last one is left to reading and writing. On nodes with GPUs, it counts for one GPU and one processor.
    All nodes must give vectors of the same space: if no fingerprint is given, one node is asked for its own first, which starts
    its daemon. Nodes without a daemon then start one with the same engine.

    Args:
        dataset: The dataset, a `ray.data.Dataset`.
        column: As for `Embed`.
        output: As for `Embed`.
        model: As for `Embed`.
        home: As for `Embed`.
        fingerprint: As for `Embed`; None asks one node.
        concurrency: The largest number of actors; None means one a node.
        batch_size: Rows of a batch.
        num_cpus: Processors that an actor counts for.
        num_gpus: GPUs that an actor counts for.
        options: Further arguments of `Embed`.

    Returns:
        A dataset with the columns of `dataset` and the new ones. It is computed when it is read.

    Raises:
        RunedError: As for `Embed`, from the node that is asked for its fingerprint.
    """
    shape = Shape.of_cluster()
    expected = fingerprint or ask(shape, nodes.Node(home=home, model=model), options.get("dimensions"))
    most = concurrency or shape.nodes
    pool = of_ray("ray.data").ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)
    return dataset.map_batches(
        Embed,
        fn_constructor_args=(column, output),
        fn_constructor_kwargs={"model": model, "home": home, "fingerprint": expected, **options},
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=shape.cpus if num_cpus is None else num_cpus,
        num_gpus=shape.gpus if num_gpus is None else num_gpus,
    )


def fingerprint(
    *, model: str | None = None, dimensions: int | None = None, home: str | os.PathLike[str] | None = None
) -> Fingerprint:
    """Ask one node for the fingerprint of its vectors. Its daemon is started, and fetches engine and model.

    Args:
        model: As for `Embed`.
        dimensions: As for `Embed`; fewer values have another fingerprint.
        home: As for `Embed`.

    Returns:
        The fingerprint, a string that also tells other nodes which engine to start.

    Raises:
        RunedError: As for `Embed`.
    """
    return ask(Shape.of_cluster(), nodes.Node(home=home, model=model), dimensions)


def embed_files(
    source: str,
    output: str,
    *,
    concurrency: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    **options: Unpack[FileOptions],
) -> JobResult:
    """Embed many files on all nodes, one task a file: the parts of `runed embed --batch 'in/*.parquet' -o out/`.

    A file counts once, however often a task or a node dies: `runed.jobs.partition` tells how. A job that was interrupted goes
    on when it is started again. Local paths must be on a disk that all nodes share.

    Args:
        source: A directory, a glob such as "s3://bucket/in/*.parquet", or a file.
        output: The directory of the results.
        concurrency: The largest number of tasks at a time; None means one a node.
        num_cpus: Processors that a task counts for; None means all but one of its node.
        num_gpus: GPUs that a task counts for.
        on_progress: Called with the number of files that are done, and of all.
        options: The options of `runed.jobs.partition.FileOptions`.

    Returns:
        The number of texts of all files, and of those without a vector.

    Raises:
        RunedError: As for `runed.jobs.partition.PartitionJob.run`.
    """
    ray = of_ray("ray")
    shape = Shape.of_cluster()
    job = PartitionJob(source, output, options)
    parts = job.begin()
    expected = ask(shape, job.node, options.get("dimensions"))
    task = ray.remote(
        num_cpus=shape.cpus if num_cpus is None else num_cpus,
        num_gpus=shape.gpus if num_gpus is None else num_gpus,
        max_retries=-1,  # after the death of a worker or a node; an error of the job is no reason to try again
        scheduling_strategy="SPREAD",
    )(_embed_part)
    most = concurrency or _AHEAD * shape.nodes
    waiting, running, results = list(reversed(parts)), list[Any](), list[PartResult]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                running.append(task.remote(job, waiting.pop(), expected))
            ended, running = ray.wait(running)
            results += results_of(ended)
            on_progress(len(results), len(parts))
    finally:
        _drop(ray, running)  # after an error, or Ctrl-C
    return summed(result.texts for result in results)


def _embed_part(job: PartitionJob, part: Part, expected: str) -> PartResult:
    return job.run_on_node(part, expected)


def _drop(ray: Any, references: list[Any]) -> None:
    """Cancel tasks. Ray would print the errors of those that nobody asks for their results."""
    for reference in references:
        ray.cancel(reference)
    ended, _ = ray.wait(references, num_returns=len(references), timeout=_CANCEL_SECONDS) if references else ([], [])
    for reference in ended:
        with suppress(ray.exceptions.RayError):
            ray.get(reference)


def _as_table(batch: Any) -> Any:
    """Return a batch of any format of Ray as a table of pyarrow."""
    if isinstance(batch, parquet.pyarrow().Table):
        return batch
    accessor = of_ray("ray.data.block").BlockAccessor
    return accessor.for_block(accessor.batch_to_block(batch)).to_arrow()
