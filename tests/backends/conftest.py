"""Fixtures that make backends of real and fake engines. They leave no process and no file behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runed.backends.engine.timings import Timings
from runed.backends.llama.backend import LlamaBackend
from runed.domain.device import CPU, Device
from runed.paths import Paths
from tests.backends.support import QUICK, FakeEngine, MakeBackend, all_stopped, check_stopped


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home)


@pytest.fixture
def fake(home: Path) -> FakeEngine:
    return FakeEngine(home / "engine")


@pytest.fixture
async def make_backend(paths: Paths, llama_server: Path, tiny_qwen3: Path) -> AsyncIterator[MakeBackend]:
    """Make backends, by default of the real engine and the tiny Qwen3. Stop each at the end, and check that its processes
    are gone."""
    async with all_stopped(paths) as made:

        def make(
            executable: Path = llama_server,
            model: Path = tiny_qwen3,
            *,
            ctx_size: int = 256,
            timings: Timings = QUICK,
            device: Device = CPU,
            kind: type[LlamaBackend] = LlamaBackend,
            model_sha256: str = "ab" * 32,
        ) -> LlamaBackend:
            check_stopped(made)
            backend = kind(
                executable=executable,
                model=model,
                model_sha256=model_sha256,
                paths=paths,
                ctx_size=ctx_size,
                timings=timings,
                device=device,
            )
            made.append(backend)
            return backend

        yield make


@pytest.fixture(scope="session")
def minilm_graph(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the graph of `minilm` for ONNX Runtime. It must not be changed."""
    folder = tmp_path_factory.mktemp("graphs") / "minilm"
    subprocess.run([sys.executable, "-m", "runed.backends.onnx.building", minilm, folder], check=True)
    return folder


@pytest.fixture
def copy_of_tiny_qwen3(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Qwen3 that a test may damage."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_qwen3.read_bytes())
    return path
