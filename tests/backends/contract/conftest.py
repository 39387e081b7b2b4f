"""Fixtures that make backends of each engine. A test that asks for one of them runs once for each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.timings import Timings
from runed.paths import Paths
from tests.backends.contract.contenders import Contender, LlamaContender, MakeEngine, OnnxContender
from tests.backends.support import QUICK, FakeEngine, all_stopped, check_stopped


@pytest.fixture(params=[LlamaContender.name, OnnxContender.name])
def engine(request: pytest.FixtureRequest, llama_server: Path, tiny_qwen3: Path, minilm: Path, minilm_graph: Path) -> Contender:
    """The engine of this run of the test."""
    if request.param == LlamaContender.name:
        return LlamaContender(llama_server, tiny_qwen3)
    return OnnxContender(minilm, minilm_graph)


@pytest.fixture
def fake(engine: Contender, home: Path) -> FakeEngine:
    """A fake of the engine."""
    return engine.fake(home / "engine")


@pytest.fixture
async def make_backend(engine: Contender, paths: Paths) -> AsyncIterator[MakeEngine]:
    """Make backends, by default of the real engine. Stop each at the end, and check that its processes are gone."""
    async with all_stopped(paths) as made:

        def make(
            program: Path | None = None, model: Path | None = None, *, ctx_size: int = 256, timings: Timings = QUICK
        ) -> EngineBackend:
            check_stopped(made)
            made.append(engine.backend(program, model, paths=paths, ctx_size=ctx_size, timings=timings))
            return made[-1]

        yield make
