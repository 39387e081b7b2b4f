"""A centroid set in the real daemon: pushed by gRPC and Connect in little memory, and restored after every kind of end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import create_server

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from runed_proto.runed.v1 import runed_pb2 as pb

import runed
from runed import errors
from tests.support import RunningDaemon, clean_environment, running_daemon, wait_until
from tools.qwen3 import Shape, write

StartDaemon = Callable[..., RunningDaemon]
Matrix = NDArray[np.float32]

MIB = 1024 * 1024
DIM = 1024
NLIST = 16_384
"""Centroids of a large set: 64 MiB at the dimensions of Qwen3-Embedding-0.6B."""

TEXTS = ["green tea", "a fast car", "the old harbour at night", "how to sharpen a knife", "sunflowers"]


def matrix(count: int, dim: int, *, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).standard_normal(size=(count, dim), dtype=np.float32)


def messages(values: Matrix, *, preset: str = "", size: int = 4 * MIB) -> Iterator[bytes]:
    """Return the encoded messages of a set, none larger than `size` bytes."""
    dim = values.shape[1]
    yield pb.SetCentroidsRequest(header=pb.CentroidSetHeader(dim=dim, nlist=len(values), preset=preset)).SerializeToString()
    # All messages have the same two lengths, and an id of three bytes.
    inner, packed = (bytes([number % 128 | 128, number // 128]) for number in (4 * dim + 7, 4 * dim))
    layout = np.dtype([("head", "S4"), ("id", "u1", 3), ("vec", "S3"), ("values", "<f4", dim)])
    rows = (size - 16) // layout.itemsize
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        records = np.zeros(len(part), layout)
        numbers = np.arange(start, start + len(part))
        records["head"] = b"\x0a" + inner + b"\x08"
        records["id"] = np.stack([numbers % 128 | 128, numbers // 128 % 128 | 128, numbers // 16384], axis=1)
        records["vec"] = b"\x12" + packed
        records["values"] = part
        message = pb.SetCentroidsRequest(batch=pb.CentroidBatch.FromString(records.tobytes())).SerializeToString()
        assert len(message) <= size
        yield message


def push(daemon: RunningDaemon, parts: Iterator[bytes]) -> pb.SetCentroidsResponse:
    """Push a set by grpcio with grpcio's defaults, as an existing program does."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/runed.v1.RunedService/SetCentroids")
        return pb.SetCentroidsResponse.FromString(stub(parts, timeout=60))


def nearest(vectors: Matrix, centroids: Matrix) -> list[int]:
    return [int(number) for number in (vectors.astype(np.float64) @ centroids.astype(np.float64).T).argmax(axis=1)]


def routes(client: runed.Client) -> tuple[list[int | None], Matrix, set[str]]:
    """Embed the texts with their routes."""
    embeddings = [item for item in client.embed_items(TEXTS, with_route=True) if isinstance(item, runed.Embedding)]
    versions = {embedding.centroid_set_version for embedding in embeddings}
    return [embedding.cluster_id for embedding in embeddings], np.array([item.vector for item in embeddings]), versions


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 # it is another process's files
            await asyncio.sleep(0.001)


@contextmanager
def peak_memory(pid: int) -> Iterator[Callable[[], int]]:
    """Watch the resident memory of a process, and return its largest growth."""
    process = psutil.Process(pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak - before
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def large() -> Matrix:
    return matrix(NLIST, DIM)


@pytest.fixture(scope="module")
def routing_daemon(llama_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon of 1,024 dimensions, for tests that replace its set."""
    model = tmp_path_factory.mktemp("model") / "qwen3-1024.f16.gguf"
    write(model, Shape(dim=DIM, layers=1))
    with running_daemon(llama_server, model) as daemon:
        with runed.connect(socket_path=daemon.socket) as client:  # so that everything imported late is there
            client.set_centroids(matrix(100, DIM))
            client.embed_items(TEXTS, with_route=True)
        push(daemon, messages(matrix(100, DIM)))
        yield daemon


def push_large(protocol: str, daemon: RunningDaemon, client: runed.Client, values: Matrix, preset: str) -> str:
    if protocol == "connect":
        installed = client.set_centroids(values, preset=preset)
        assert installed.nlist == len(values)
        return installed.version
    answer = push(daemon, messages(values, preset=preset))
    assert answer.nlist == len(values)
    return answer.version


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_large_set_takes_little_memory(protocol: str, routing_daemon: RunningDaemon, large: Matrix) -> None:
    with runed.connect(socket_path=routing_daemon.socket, timeout=60) as client:
        with peak_memory(routing_daemon.process.pid) as grown:
            # Twice: the second set comes while the first one is in place.
            versions = [push_large(protocol, routing_daemon, client, large, preset) for preset in ("first", "second")]
            ids, vectors, routed_by = routes(client)
            # The sets themselves, and as little beside them as the messages of a push.
            assert grown() < 2 * large.nbytes + 64 * MIB
        assert ids == nearest(vectors, large)
        assert routed_by == {versions[1]} == {client.info().centroid_set_version}
        client.set_centroids(matrix(100, DIM))


def test_message_of_the_largest_size_is_taken(routing_daemon: RunningDaemon) -> None:
    values = matrix(8_000, DIM)
    parts = list(messages(values, size=32 * MIB))
    assert len(parts) == 2
    assert push(routing_daemon, iter(parts)).nlist == 8_000


def test_pushes_at_once_are_installed_one_after_another(routing_daemon: RunningDaemon) -> None:
    def one(seed: int) -> str:
        with runed.connect(socket_path=routing_daemon.socket, timeout=60) as client:
            return client.set_centroids(matrix(3000, DIM, seed=seed)).version

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(one, range(4)))
    assert len(set(versions)) == 4
    with runed.connect(socket_path=routing_daemon.socket) as client:
        last = client.info().centroid_set_version
        ids, vectors, _ = routes(client)
    assert ids == nearest(vectors, matrix(3000, DIM, seed=versions.index(last)))


async def test_by_asyncio_too(routing_daemon: RunningDaemon) -> None:
    values = matrix(2000, DIM, seed=8)
    async with await runed.connect_async(socket_path=routing_daemon.socket) as client:
        installed = await client.set_centroids(values.tolist(), preset="k2000")
        assert installed == runed.CentroidSet(version=(await client.info()).centroid_set_version, nlist=2000)
        again = await client.set_centroids(values, "k2000", installed.version)
        assert again == installed
        with pytest.raises(errors.BadCentroidsError, match="is not that of the received content"):
            await client.set_centroids(values, "k2001", installed.version)
        embeddings = [item for item in await client.embed_items(TEXTS, with_route=True) if isinstance(item, runed.Embedding)]
    assert [item.cluster_id for item in embeddings] == nearest(np.array([item.vector for item in embeddings]), values)


async def test_cancelled_push_leaves_the_set_before_it(routing_daemon: RunningDaemon, large: Matrix) -> None:
    async with await runed.connect_async(socket_path=routing_daemon.socket) as client:
        before = await client.set_centroids(matrix(50, DIM))
        task = asyncio.create_task(client.set_centroids(large))
        await until(lambda: partial_files(routing_daemon.home))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not partial_files(routing_daemon.home))
        assert (await client.info()).centroid_set_version == before.version


def test_status_shows_the_set(routing_daemon: RunningDaemon) -> None:
    with runed.connect(socket_path=routing_daemon.socket) as client:
        version = client.set_centroids(matrix(50, DIM)).version
    status = subprocess.run(
        [sys.executable, "-m", "runed", "status"],
        env=clean_environment(RUNED_HOME=str(routing_daemon.home)),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert f"routing   centroid set {version}\n" in status.stdout


# Ends and beginnings


def partial_files(home: Path) -> list[Path]:
    """Return the files of sets that are being received and written."""
    begun = []
    for path in (home / "cache").glob(".centroids.bin.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # the file was removed between the two looks
            if path.stat().st_size:
                begun.append(path)
    return begun


def begun_or_done(home: Path, sending: Future[pb.SetCentroidsResponse]) -> bool:
    return bool(partial_files(home)) or sending.done()


def refuses_to_route(client: runed.Client) -> bool:
    before = client.health().total_texts
    with pytest.raises(errors.NoCentroidSetError, match="push one"):
        client.embed_items(["never embedded"], with_route=True)
    return client.health().total_texts == before


def test_kill_while_installing_leaves_the_set_before_it(start_daemon: StartDaemon, home: Path) -> None:
    old, new = matrix(500, 64), matrix(60_000, 64, seed=2)
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        assert refuses_to_route(client)
        version = client.set_centroids(old).version
        ids, vectors, _ = routes(client)

    stop_sending = threading.Event()

    def held_back() -> Iterator[bytes]:
        parts = list(messages(new, size=MIB))
        yield from parts[:-1]
        stop_sending.wait(30)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(push, daemon, held_back())
        wait_until(lambda: partial_files(home), what="the beginning of the new set")
        daemon.stop(signal.SIGKILL)
        assert isinstance(sending.exception(30), grpc.RpcError)
        stop_sending.set()
    assert partial_files(home)

    successor = start_daemon()
    successor.wait_for("STATUS_OK")
    assert not partial_files(home)
    with runed.connect(socket_path=successor.socket) as client:
        assert client.info().centroid_set_version == version
        again, same_vectors, versions = routes(client)
    assert again == ids == nearest(vectors, old)
    assert versions == {version}
    assert np.allclose(vectors, same_vectors, atol=1e-6)

    # At any moment around the end, one of the two sets is there as a whole.
    for delay in (0.0, 0.02):
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(push, successor, iter(list(messages(new))))
            wait_until(partial(begun_or_done, home, sending), what="the beginning of the new set")
            time.sleep(delay)
            successor.stop(signal.SIGKILL)
            sending.exception(30)
        successor = start_daemon()
        successor.wait_for("STATUS_OK")
        with runed.connect(socket_path=successor.socket) as client:
            ids, vectors, versions = routes(client)
            assert versions == {client.info().centroid_set_version}
        assert ids in (nearest(vectors, old), nearest(vectors, new))
    assert successor.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a running process")
@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_refused_memory_leaves_the_set_before_it_and_is_told(
    protocol: str, routing_daemon: RunningDaemon, large: Matrix
) -> None:
    process = psutil.Process(routing_daemon.process.pid)
    with runed.connect(socket_path=routing_daemon.socket) as client:
        before = client.set_centroids(matrix(100, DIM)).version
        soft, hard = process.rlimit(psutil.RLIMIT_AS)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 40 * MIB, hard))
        try:
            with pytest.raises((runed.RunedError, grpc.RpcError)) as caught:
                push_large(protocol, routing_daemon, client, large, "")
            assert re.search(
                r"refused the memory for 16384 centroids; the set before it stays|refused memory", str(caught.value)
            )
            assert "please report it" not in str(caught.value)
            _, _, versions = routes(client)
            assert versions == {before} == {client.info().centroid_set_version}
        finally:
            process.rlimit(psutil.RLIMIT_AS, (soft, hard))
        assert not partial_files(routing_daemon.home)
        assert push_large(protocol, routing_daemon, client, large, "") != before


def test_damaged_file_and_another_model_are_not_served(start_daemon: StartDaemon, home: Path, minilm: Path) -> None:
    path = home / "cache" / "centroids.bin"
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        client.set_centroids(matrix(500, 64))
    assert daemon.stop() == 0
    whole = path.read_bytes()

    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        assert refuses_to_route(client)
        assert client.info().centroid_set_version == ""
    assert not path.exists()
    [warning] = [line for line in daemon.log_lines() if "centroid" in line["message"]]
    assert (warning["level"], warning["problem"]) == ("warning", "its checksum is wrong")
    assert daemon.stop() == 0

    path.write_bytes(whole)
    daemon = start_daemon(RUNED_MODEL=str(minilm))
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        assert refuses_to_route(client)
        with pytest.raises(errors.BadCentroidsError, match="have 64 values each, but the vectors of this model have 384"):
            client.set_centroids(matrix(500, 64))
    assert not path.exists()
    assert daemon.stop() == 0


def test_without_a_model_there_is_nothing_to_route(start_daemon: StartDaemon) -> None:
    with create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/manifest.json"
        daemon = start_daemon(RUNED_LLAMA_SERVER="", RUNED_MODEL="", RUNED_MANIFEST=url)
        daemon.wait_for("STATUS_LOADING")
        with pytest.raises(grpc.RpcError) as caught:
            push(daemon, messages(matrix(5, 64)))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        answer = daemon.call("Embed", {"text": "tea", "withRoute": True})
        assert answer["code"] == "failed_precondition"
        assert "engine and model are not there yet" in answer["message"]
        assert "centroidSetVersion" not in daemon.call("Info")
        assert daemon.stop() == 0
