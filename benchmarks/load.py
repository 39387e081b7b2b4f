"""Load from a separate process. Each client has a thread and a connection; runed and the raw server get the same load."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import runed
from benchmarks.models import Model
from benchmarks.raw import RawClient

P = ParamSpec("P")
T = TypeVar("T")

_WARM_UP = 0.1
"""Share of a closed loop, at its start, that is not counted. All clients begin at once then, and never again later."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is put under load.

    Attributes:
        name: Its name in tables.
        socket: The socket that it listens on.
        raw: Whether it is a raw `llama-server`.
    """

    name: str
    socket: Path
    raw: bool

    def connect(self) -> RawClient | runed.Client:
        """Return a new client, which the caller closes."""
        return RawClient(self.socket) if self.raw else runed.connect(socket_path=self.socket)


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of a closed loop.

    Attributes:
        rate: Texts per second.
        seconds: The time of each call, in seconds.
    """

    rate: float
    seconds: list[float]


class LoadProcess:
    """A process that runs functions of this module or of another one; a context manager."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start a call of a function in the process."""
        return self._pool.submit(function, *args, **kwargs)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the process, and return its result."""
        return self.start(function, *args, **kwargs).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def closed_loop(target: Target, model: Model, first: int, *, clients: int, seconds: float) -> Sample:
    """Run clients that send single texts. Each sends its next text as soon as it has the vector of the last one.

    Args:
        target: The server.
        model: The model whose texts are sent.
        first: The number of the first text; as many as are needed follow.
        clients: The number of clients.
        seconds: The time of the loop, in seconds.
    """
    numbers = count(first)
    calls: list[tuple[float, float]] = []
    ready = threading.Barrier(clients + 1, timeout=60)
    end = float("inf")

    def call_on() -> None:
        with target.connect() as client:
            client.embed(model.text(next(numbers)))  # so that it is connected
            ready.wait()
            while time.perf_counter() < end:
                text = model.text(next(numbers))
                began = time.perf_counter()
                client.embed(text)
                calls.append((began, time.perf_counter()))

    with ThreadPoolExecutor(clients) as pool:
        loops = [pool.submit(call_on) for _ in range(clients)]
        ready.wait()
        begin = time.perf_counter()
        end = begin + seconds
    for loop in loops:
        loop.result()
    counted = begin + seconds * _WARM_UP
    # A call that overlaps the counted time in part counts in part. Whole calls would make the rate of slow models jump.
    parts = [max(0.0, min(ended, end) - max(began, counted)) / (ended - began) for began, ended in calls]
    return Sample(rate=sum(parts) / (end - counted), seconds=[ended - began for began, ended in calls if began >= counted])


def list_job(target: Target, model: Model, first: int, *, texts: int, size: int, in_flight: int) -> float:
    """Embed texts by lists, some of them in flight at a time, and return the texts per second."""
    starts = iter(range(first, first + texts, size))

    def call_on() -> None:
        with target.connect() as client:
            for start in starts:
                client.embed_batch([model.text(number) for number in range(start, min(start + size, first + texts))])

    began = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        workers = [pool.submit(call_on) for _ in range(in_flight)]
    for worker in workers:
        worker.result()
    return texts / (time.perf_counter() - began)


def stream_job(target: Target, model: Model, numbers: Sequence[int], *, name: str | None = None) -> float:
    """Embed the texts of these numbers by one stream of runed's client, and return the texts per second.

    Args:
        target: The daemon.
        model: The model whose texts are sent.
        numbers: The numbers of the texts.
        name: The name of the model that embeds; None means the daemon's default one.
    """
    with runed.connect(socket_path=target.socket) as client:
        client.warm_up(model=name)
        client.info()  # so that the client has imported what it needs, as the daemon has
        began = time.perf_counter()
        answered = 0
        for _, outcome in client.embed_stream(((number, model.text(number)) for number in numbers), model=name):
            assert isinstance(outcome, runed.Embedding), outcome
            answered += 1
        seconds = time.perf_counter() - began
    assert answered == len(numbers), f"{answered} vectors for {len(numbers)} texts"
    return answered / seconds


def rank_job(target: Target, model: Model, first: int, *, queries: int, documents: int) -> list[float]:
    """Rank documents for queries, one call after the other, and return the seconds of each call.

    Args:
        target: The server.
        model: The model whose texts are queries and documents.
        first: The number of the first text; each query takes one more than its documents.
        queries: The number of calls.
        documents: The number of documents of each.
    """
    texts = (model.text(number) for number in count(first))
    seconds = []
    with target.connect() as client:
        client.rerank(next(texts), [next(texts)])  # so that it is connected
        for _ in range(queries):
            query, *others = islice(texts, documents + 1)
            began = time.perf_counter()
            ranked = client.rerank(query, others)
            seconds.append(time.perf_counter() - began)
            assert len(ranked) == documents
    return seconds


def batch_job(target: Target, model: Model, first: int, *, texts: int) -> float:
    """Embed texts by one `embed_batch` of runed's client, and return the texts per second."""
    return list_job(target, model, first, texts=texts, size=texts, in_flight=1)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The effects of a job that was cancelled.

    Attributes:
        seconds: Seconds from the cancellation until another client has the vector of a single text.
        late_texts: Texts of the job that went to the engine after the cancellation.
    """

    seconds: float
    late_texts: int


def cancelled_stream(target: Target, model: Model, first: int, *, texts: int, after: int) -> Cancelled:
    """Close a stream, and its client, in the middle of its job.

    Args:
        target: The daemon.
        model: The model whose texts are sent.
        first: The number of the first text.
        texts: The number of texts of the job.
        after: Vectors that are taken before the cancellation.
    """
    with runed.connect(socket_path=target.socket) as other:
        with runed.connect(socket_path=target.socket) as client:
            results = client.embed_stream((number, model.text(number)) for number in range(first, first + texts))
            with closing(results):
                for _ in range(after):
                    next(results)
        return _after_cancel(other, model, first + texts)


def cancelled_batch(target: Target, model: Model, first: int, *, texts: int, after: int) -> Cancelled:
    """Cancel the task of an `embed_batch`; otherwise the same as `cancelled_stream`."""
    with runed.connect(socket_path=target.socket) as other:

        async def cancel() -> None:
            client = await runed.connect_async(socket_path=target.socket)
            async with client:
                taken = other.health().bulk.total_texts
                call = asyncio.create_task(client.embed_batch([model.text(number) for number in range(first, first + texts)]))
                while (await client.health()).bulk.total_texts < taken + after:  # noqa: ASYNC110 # no event tells it
                    await asyncio.sleep(0.05)
                call.cancel()
                await asyncio.wait([call])
                assert call.cancelled()

        asyncio.run(cancel())
        return _after_cancel(other, model, first + texts)


def _after_cancel(other: runed.Client, model: Model, number: int) -> Cancelled:
    """Measure the texts that the engine still computes after a cancellation, and the next client's waiting time."""
    taken = other.health().bulk.total_texts
    began = time.perf_counter()
    other.embed(model.text(number))
    seconds = time.perf_counter() - began
    time.sleep(1)
    return Cancelled(seconds, other.health().bulk.total_texts - taken)
