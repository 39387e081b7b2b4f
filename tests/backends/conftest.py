"""Fixtures that make backends of real and fake engines. They leave no process and no file behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from runed.backends.base import BackendStatus
from runed.backends.engine.timings import Timings
from runed.backends.llama.backend import LlamaBackend
from runed.domain.device import CPU, Device
from runed.paths import Paths
from tests.backends.support import QUICK, FakeEngine, MakeBackend


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
    made: list[LlamaBackend] = []

    def make(
        executable: Path = llama_server,
        model: Path = tiny_qwen3,
        *,
        ctx_size: int = 256,
        timings: Timings = QUICK,
        device: Device = CPU,
        kind: type[LlamaBackend] = LlamaBackend,
    ) -> LlamaBackend:
        # Two backends in one home would each end the other's engine, taking it for one that an earlier daemon left behind.
        assert all(earlier.state.status is BackendStatus.STOPPED for earlier in made), "stop the earlier backend first"
        backend = kind(
            executable=executable,
            model=model,
            model_sha256="ab" * 32,
            paths=paths,
            ctx_size=ctx_size,
            timings=timings,
            device=device,
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        await backend.stop()
    engines = [process for process in psutil.Process().children() if str(paths.engine_socket) in process.cmdline()]
    assert not engines
    assert not paths.engine_record.exists()
    assert not paths.engine_socket.is_socket()


@pytest.fixture
def copy_of_tiny_qwen3(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Qwen3 that a test may damage."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_qwen3.read_bytes())
    return path
