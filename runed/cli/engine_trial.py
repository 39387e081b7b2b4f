"""The part of `runed bench --tune` that compares `llama-server` with ONNX Runtime, on the processors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runed.backends.comparing import try_engine
from runed.backends.llama import LlamaBackend
from runed.backends.llama.measuring import workshop
from runed.backends.onnx import availability
from runed.backends.onnx.backend import OnnxBackend
from runed.backends.onnx.graphs import ensure_graph
from runed.bootstrap import EngineComparison, Installation
from runed.cli.boundary import complain
from runed.cli.workbench import Workbench, program_of
from runed.daemon.choosing import ROUNDS, builds_of, judge
from runed.domain.engines import LLAMA_SERVER, ONNX_RUNTIME
from runed.errors import RunedError
from runed.paths import Paths, ensure_private_dir

if TYPE_CHECKING:
    from runed.backends.llama.profile import Tuning


def compare_engines(bench: Workbench, installation: Installation, tuning: Tuning) -> EngineComparison | None:
    """Compare the engines for a model that the processors serve. It blocks, as `runed.backends.llama.tuning.tune`.

    Args:
        bench: The place of the measurements.
        installation: The model and the `llama-server`.
        tuning: The settings that were found to be the best for `llama-server`.

    Returns:
        The result; None if only one of the engines can serve, or one failed, which is told.
    """
    if bench.settings.engine != "auto" or not installation.device.is_cpu or availability.missing():
        return None
    try:
        with workshop(bench.paths) as temporary:
            return asyncio.run(_compare(bench, installation, tuning, temporary))
    except RunedError as error:
        complain(f"{LLAMA_SERVER} and {ONNX_RUNTIME} could not be compared: {error.message}")
        return None


async def _compare(bench: Workbench, installation: Installation, tuning: Tuning, temporary: Paths) -> EngineComparison | None:
    settings, name = bench.settings, bench.settings.profile
    model, sha256, pooling = installation.model, installation.model_sha256, installation.spec.pooling
    profile = next((profile for profile in tuning.profiles if profile.name == name), name)
    llama = LlamaBackend(
        executable=program_of(installation),
        model=model,
        model_sha256=sha256,
        paths=temporary,
        ctx_size=settings.ctx_size,
        pooling=pooling,
        profile=profile,
    )
    if availability.objection(llama.model):
        return None
    builds = builds_of(settings, installation)
    bench.display.update(f"building the graph for {ONNX_RUNTIME}")
    await ensure_graph(model, sha256, bench.paths, pooling=pooling)
    graphs = bench.paths.cache / "onnx"
    ensure_private_dir(graphs)
    (temporary.cache / "onnx").symlink_to(graphs)  # a graph is large
    onnx = OnnxBackend(
        model=model,
        model_sha256=sha256,
        paths=temporary,
        ctx_size=settings.ctx_size,
        pooling=pooling,
        profile=name,
        provider=settings.onnx_provider,
    )
    rounds = []
    for number in range(1, ROUNDS + 1):
        bench.display.update(f"measuring {LLAMA_SERVER}, round {number} of {ROUNDS}")
        first = await try_engine(llama, bench.seconds / ROUNDS, engine=LLAMA_SERVER)
        bench.display.update(f"measuring {ONNX_RUNTIME}, round {number} of {ROUNDS}")
        second = await try_engine(onnx, bench.seconds / ROUNDS, engine=ONNX_RUNTIME)
        rounds.append((first, second))
    return judge(rounds, model=llama.model, builds=builds)
