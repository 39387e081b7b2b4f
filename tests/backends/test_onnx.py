"""ONNX Runtime as a backend: right vectors, and a graph that is made before the first start, or told why not."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from runed.backends.base import BackendStatus
from runed.backends.engine.launcher import DeviceError
from runed.backends.likeness import cosine
from runed.backends.onnx.backend import OnnxBackend
from runed.backends.onnx.building import build
from runed.backends.onnx.graph_folder import GRAPH, TOKENIZER, WEIGHTS, graph_folder, is_complete
from runed.backends.onnx.graphs import ensure_graph, folder_bytes
from runed.errors import BackendFaultError, BackendUnavailableError, ModelFileError, TextTooLongError
from runed.locking import LockFile
from runed.paths import Paths
from tests.backends.contract.contenders import SHA256, provide_graph
from tests.backends.support import FAKES, QUICK, FakeEngine, all_stopped, check_stopped
from tests.onnx_files import write_own_model
from tests.support import Golden, capture_logs, process_gone, wait_until
from tools.encoders import Shape, write
from tools.minilm import package_folder
from tools.minilm_onnx import export

MakeOnnx = Callable[..., OnnxBackend]

BUILDER = "runed.backends.onnx.building"
"""The program that makes a graph."""

BUILDING, BUILT = "making the graph for ONNX Runtime", "made the graph for ONNX Runtime"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights."""
    path = tmp_path_factory.mktemp("encoder") / "bert.gguf"
    write(path, "bert", Shape(dim=32, layers=1, heads=2, feed_forward=32))
    return path


@pytest.fixture(scope="session")
def made_graph(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the graph of `encoder`. It must not be changed."""
    folder = tmp_path_factory.mktemp("graphs") / "bert"
    build(encoder, folder)
    return folder


@pytest.fixture(scope="session")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as an ONNX file of the user's own."""
    folder = tmp_path_factory.mktemp("own")
    export(package_folder(), folder)
    return folder / "model.onnx"


@pytest.fixture
async def make_onnx(paths: Paths, encoder: Path) -> AsyncIterator[MakeOnnx]:
    """Make backends in one home, which has no graph yet. Stop each at the end."""
    async with all_stopped(paths) as made:

        def make(**changes: Any) -> OnnxBackend:  # noqa: ANN401 # the arguments of `OnnxBackend`
            check_stopped(made)
            settings = {"model": encoder, "model_sha256": SHA256, "paths": paths, "ctx_size": 512, "timings": QUICK}
            backend = OnnxBackend(**{**settings, **changes})
            made.append(backend)
            return backend

        yield make


@pytest.fixture
def graph(paths: Paths) -> Path:
    """The place of the graph."""
    return graph_folder(paths, SHA256)


def as_array(vectors: list[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)


def builders(graph: Path) -> list[psutil.Process]:
    """Return the processes of this one that make a graph."""
    return [child for child in psutil.Process().children() if {BUILDER, str(graph)} <= {*child.cmdline()}]


# Vectors


async def test_minilm_agrees_with_sentence_transformers(
    make_onnx: MakeOnnx, paths: Paths, minilm: Path, minilm_graph: Path, minilm_golden: Golden
) -> None:
    provide_graph(paths, minilm_graph)
    backend = make_onnx(model=minilm)
    batch = await backend.embed(minilm_golden.texts)
    assert minilm_golden.cosines(as_array(batch.vectors)).min() >= 0.99999
    assert [len(tokens) for tokens in await backend.tokenize(minilm_golden.texts)] == minilm_golden.tokens
    assert batch.tokens == sum(minilm_golden.tokens)
    assert backend.state.company_cosine >= 0.9999999


async def test_vectors_do_not_depend_on_company(
    make_onnx: MakeOnnx, paths: Paths, minilm: Path, minilm_graph: Path, minilm_golden: Golden
) -> None:
    provide_graph(paths, minilm_graph)
    backend = make_onnx(model=minilm)
    alone = [(await backend.embed([text])).vectors[0] for text in minilm_golden.texts]
    together = (await backend.embed(minilm_golden.texts)).vectors
    assert min(map(cosine, alone, together)) >= 0.9999999


@pytest.mark.parametrize(("ctx_size", "limit"), [(100, 256), (512, 512), (100_000, 512)])
async def test_max_tokens_are_taken_and_not_one_more(
    make_onnx: MakeOnnx, paths: Paths, made_graph: Path, ctx_size: int, limit: int
) -> None:
    provide_graph(paths, made_graph)
    backend = make_onnx(ctx_size=ctx_size)
    assert backend.model.max_tokens == limit
    longest = "the " * (limit - 2)  # with CLS and SEP
    assert (await backend.embed([longest])).tokens == limit
    with pytest.raises(TextTooLongError) as caught:
        await backend.embed([longest + "the"])
    assert caught.value.metadata == {"tokens": str(limit + 1), "limit": str(limit)}


async def test_model_is_known_before_the_engine_runs(make_onnx: MakeOnnx, graph: Path) -> None:
    backend = make_onnx()
    assert (backend.model.identity, backend.model.dim, backend.model.pooling) == ("sha256:" + "ab" * 8, 32, "mean")
    assert backend.model.special_tokens
    assert backend.state.status is BackendStatus.STOPPED
    assert not is_complete(graph)


# The graph


async def test_graph_is_made_before_the_first_start_and_once(make_onnx: MakeOnnx, graph: Path) -> None:
    backend = make_onnx()
    with capture_logs() as log:
        await backend.start()
        await backend.stop()
        await backend.start()
    assert [line["event"] for line in log if line["event"] in {BUILDING, BUILT}] == [BUILDING, BUILT]
    assert is_complete(graph)
    assert folder_bytes(graph) > 30_522 * 32 * 4
    assert not builders(graph)


async def test_another_pooling_has_a_graph_of_its_own(make_onnx: MakeOnnx, paths: Paths) -> None:
    vectors = []
    for pooling in ("", "cls"):
        backend = make_onnx(pooling=pooling)
        vectors += (await backend.embed(["a text"])).vectors
        await backend.stop()
        assert is_complete(graph_folder(paths, SHA256, pooling))
    assert vectors[0] != vectors[1]


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, WEIGHTS])
@pytest.mark.parametrize("changes", [{}, {"is_replaceable": True}], ids=["alone", "replaceable"])
async def test_damaged_graph_is_made_anew(
    make_onnx: MakeOnnx, made_graph: Path, graph: Path, name: str, changes: dict[str, bool]
) -> None:
    shutil.copytree(made_graph, graph)
    backend = make_onnx(**changes)
    expected = await backend.embed(["a text"])
    await backend.stop()
    (graph / name).write_bytes(bytes((graph / name).stat().st_size))
    with capture_logs() as log:
        assert await make_onnx(**changes).embed(["a text"]) == expected
    assert "the graph cannot be used and is made anew" in [line["event"] for line in log]


async def test_graph_that_is_cut_short_is_made_anew(make_onnx: MakeOnnx, made_graph: Path, graph: Path) -> None:
    shutil.copytree(made_graph, graph)
    backend = make_onnx()
    assert is_complete(graph)
    os.truncate(graph / GRAPH, 10)
    assert not is_complete(graph)
    await backend.start()
    assert is_complete(graph)


async def test_model_of_which_no_graph_can_be_made_is_told_at_once(make_onnx: MakeOnnx, tiny_qwen3: Path, graph: Path) -> None:
    backend = make_onnx(model=tiny_qwen3)
    with capture_logs() as log, pytest.raises(ModelFileError, match=r"its architecture is 'qwen3'"):
        await backend.start()
    assert backend.state.status is BackendStatus.FAILED
    assert "its architecture is 'qwen3'" in backend.state.reason
    assert [line["event"] for line in log].count(BUILDING) == 1
    assert not is_complete(graph)
    with pytest.raises(BackendUnavailableError, match="is tried again in"):
        await backend.embed(["hello"])


async def test_place_that_is_taken_is_named(make_onnx: MakeOnnx, paths: Paths) -> None:
    paths.cache.mkdir()
    (paths.cache / "onnx").write_text("mine")
    with pytest.raises(BackendUnavailableError, match=r"the graph for ONNX Runtime cannot be made: .*/cache/onnx is not a dir"):
        await make_onnx().start()


async def test_lost_home_gets_no_graph(make_onnx: MakeOnnx, paths: Paths) -> None:
    backend = make_onnx(holds_home=lambda: False, is_replaceable=True)
    with pytest.raises(BackendUnavailableError, match="removed or replaced") as caught:
        await backend.start()
    assert not isinstance(caught.value, DeviceError)
    assert not paths.cache.exists()


class TestWhileAnotherProcessMakesIt:
    """The program that makes a graph waits then, so that a test finds it at work."""

    @pytest.fixture(autouse=True)
    def lock(self, graph: Path) -> Iterator[LockFile]:
        graph.parent.mkdir(parents=True, mode=0o700)
        with LockFile(graph.parent / f".{graph.name}.lock") as lock:
            assert lock.try_acquire()
            yield lock

    async def test_a_stop_ends_it(self, make_onnx: MakeOnnx, graph: Path) -> None:
        backend = make_onnx()
        waiting = asyncio.create_task(backend.embed(["hello"]))
        [builder] = await asyncio.to_thread(wait_until, lambda: builders(graph))
        assert backend.state.status is BackendStatus.STARTING
        await backend.stop()
        with pytest.raises(BackendUnavailableError, match="was stopped while it started"):
            await waiting
        assert process_gone(builder.pid)

    async def test_one_that_stands_still_is_given_up(self, make_onnx: MakeOnnx, graph: Path) -> None:
        backend = make_onnx(timings=replace(QUICK, start_stall=0.5, max_failures=1))
        starting = asyncio.create_task(backend.start())
        [builder] = await asyncio.to_thread(wait_until, lambda: builders(graph))
        os.kill(builder.pid, signal.SIGSTOP)
        with pytest.raises(BackendUnavailableError, match=r"made no progress for 0.5 seconds; it said nothing"):
            await starting
        assert process_gone(builder.pid)

    async def test_one_that_never_ends_is_given_up(self, make_onnx: MakeOnnx) -> None:
        backend = make_onnx(timings=replace(QUICK, start_limit=1.0, max_failures=1))
        with pytest.raises(BackendUnavailableError, match=r"was not ready after 1 seconds"):
            await backend.start()

    async def test_one_that_is_killed_is_tried_again(self, make_onnx: MakeOnnx, graph: Path, lock: LockFile) -> None:
        backend = make_onnx()
        starting = asyncio.create_task(backend.start())
        [builder] = await asyncio.to_thread(wait_until, lambda: builders(graph))
        os.kill(builder.pid, signal.SIGKILL)
        lock.release()
        await starting
        assert backend.state.status is BackendStatus.READY

    async def test_only_what_may_have_come_by_chance_can_be_tried_again_soon(
        self, encoder: Path, paths: Paths, graph: Path, lock: LockFile
    ) -> None:
        making = asyncio.create_task(ensure_graph(encoder, SHA256, paths))
        [builder] = await asyncio.to_thread(wait_until, lambda: builders(graph))
        os.kill(builder.pid, signal.SIGKILL)
        with pytest.raises(BackendUnavailableError, match="was ended by SIGKILL") as killed:
            await making
        assert killed.value.retry_after == 1.0
        lock.release()
        (graph.parent / f".{graph.name}.lock").unlink()
        (graph.parent / f".{graph.name}.lock").mkdir()
        with pytest.raises(BackendUnavailableError, match="Is a directory; correct that, and try again") as told:
            await ensure_graph(encoder, SHA256, paths)
        assert told.value.retry_after is None

    async def test_the_graph_of_the_other_is_used(self, make_onnx: MakeOnnx, graph: Path, lock: LockFile) -> None:
        backend = make_onnx()
        starting = asyncio.create_task(backend.start())
        await asyncio.to_thread(wait_until, lambda: builders(graph))
        lock.release()
        await starting
        assert is_complete(graph)

    @pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's; elsewhere it ends by itself")
    def test_it_dies_with_a_daemon_that_is_killed(self, home: Path, encoder: Path, graph: Path) -> None:
        arguments = [FAKES / "daemon_with_engine.py", home, encoder]
        with subprocess.Popen([sys.executable, *arguments], cwd=FAKES.parent.parent) as daemon:
            children = psutil.Process(daemon.pid).children
            [builder] = wait_until(lambda: [child for child in children() if str(graph) in child.cmdline()])
            daemon.kill()
        wait_until(lambda: process_gone(builder.pid), what="the end of the program that makes the graph")


# In place of another engine


async def test_failure_of_an_engine_that_another_can_replace_is_told_as_that_of_a_device(
    make_onnx: MakeOnnx, tiny_qwen3: Path
) -> None:
    backend = make_onnx(model=tiny_qwen3, is_replaceable=True)
    with pytest.raises(DeviceError, match="its architecture is 'qwen3'"):
        await backend.start()
    assert backend.state.status is BackendStatus.DEVICE_FAILED


@pytest.mark.parametrize("behaviour", [{"exit": "out of luck"}, {"always": "nan"}, {"always": "batch-rounds"}], ids=str)
@pytest.mark.parametrize("is_replaceable", [True, False])
async def test_engine_that_fails_its_start_makes_room_for_another(
    make_onnx: MakeOnnx, paths: Paths, home: Path, behaviour: dict[str, object], *, is_replaceable: bool
) -> None:
    fake = FakeEngine(home / "engine", "fake_onnx_worker", "worker.py")
    fake.behave(**behaviour)
    provide_graph(paths, None)
    backend = make_onnx(worker=fake.executable, is_replaceable=is_replaceable)
    with pytest.raises((BackendUnavailableError, BackendFaultError)) as caught:
        await backend.start()
    assert isinstance(caught.value, DeviceError) is is_replaceable
    assert backend.state.status is (BackendStatus.DEVICE_FAILED if is_replaceable else BackendStatus.FAILED)


async def test_device_that_onnx_runtime_lacks_is_named(make_onnx: MakeOnnx, paths: Paths, made_graph: Path) -> None:
    provide_graph(paths, made_graph)
    backend = make_onnx(provider="dml")
    with pytest.raises(BackendUnavailableError, match=r"exited with code 2 .* has no DmlExecutionProvider"):
        await backend.start()


# A user's own ONNX file


async def test_own_file_is_served(paths: Paths, make_onnx: MakeOnnx, own_file: Path, minilm_golden: Golden) -> None:
    with pytest.raises(ModelFileError, match="has not been read yet"):
        make_onnx(model=own_file, pooling="mean")
    await ensure_graph(own_file, SHA256, paths, pooling="mean", timings=QUICK)
    backend = make_onnx(model=own_file, pooling="mean")
    info = backend.model
    assert (info.architecture, info.dim, info.max_tokens, info.pooling, info.file_type) == ("bert", 384, 512, "mean", "F32")
    assert (101, "[CLS]") in info.special_tokens
    assert info.unknown_token == 100
    batch = await backend.embed(minilm_golden.texts)
    assert minilm_golden.cosines(as_array(batch.vectors)).min() >= 0.99999


@pytest.mark.parametrize("name", ["weights.bin", "tokenizer.json"])
async def test_own_file_whose_folder_changed_is_not_served(
    paths: Paths, make_onnx: MakeOnnx, tmp_path: Path, name: str
) -> None:
    model = write_own_model(tmp_path / "own", outside="weights.bin", pooling="mean")
    await ensure_graph(model, SHA256, paths, timings=QUICK)
    backend = make_onnx(model=model)
    await backend.start()
    await backend.stop()
    path = model.with_name(name)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BackendUnavailableError, match=r"^the model .*model.onnx was replaced or removed"):
        await backend.start()
