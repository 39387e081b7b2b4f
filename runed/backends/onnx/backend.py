"""ONNX Runtime as an Embedder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from runed.backends.cores import usable_cores
from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.timings import Timings
from runed.backends.onnx.command import WORKER, OnnxCommand
from runed.backends.onnx.description import describe
from runed.backends.onnx.graph_folder import graph_folder
from runed.backends.onnx.http import OnnxHTTP
from runed.backends.onnx.launcher import OnnxLauncher
from runed.paths import Paths


class OnnxBackend(EngineBackend):
    """Embeds with a worker that runs ONNX Runtime. It is started when it is needed, and replaced when it dies.

    Constructing it reads the model's metadata and starts nothing. The graph of a GGUF is made before the first start.

    Args:
        model: The GGUF, or a user's own ONNX file.
        model_sha256: The SHA-256 of the model, in hexadecimal.
        paths: The home. Only one backend at a time may use it, as its daemon's lock ensures.
        ctx_size: The most tokens of a text; clamped to the model's, and rounded up to a multiple of 256, as for `llama-server`.
        pooling: The pooling instead of that of the model, or "".
        profile: The name of a profile.
        provider: What computes: "cpu", "cuda", "coreml" or "dml".
        is_replaceable: Whether another engine can serve in place of this one. Then a start that fails is a `DeviceError`.
        holds_home: Returns whether the home is still this process's. Otherwise no engine is started, and no file removed.
        timings: Time limits for the engine.
        worker: The program of the worker.

    Raises:
        ModelFileError: The model cannot be used, or it is an ONNX file of which `ensure_graph` has not made the folder.
    """

    def __init__(
        self,
        *,
        model: Path,
        model_sha256: str,
        paths: Paths,
        ctx_size: int,
        pooling: str = "",
        profile: str = "balanced",
        provider: str = "cpu",
        is_replaceable: bool = False,
        holds_home: Callable[[], bool] = lambda: True,
        timings: Timings = Timings(),  # noqa: B008 # immutable
        worker: Path = WORKER,
    ) -> None:
        graph = graph_folder(paths, model_sha256, pooling)
        command = OnnxCommand(
            executable=Path(sys.executable),
            worker=worker,
            model=model.absolute(),
            graph=graph,
            socket=paths.engine_socket,
            log=paths.onnx_log,
            info=describe(model, graph, sha256=model_sha256, ctx_size=ctx_size, pooling=pooling),
            pooling=pooling,
            profile=profile,
            threads=usable_cores(),
            provider=provider,
            is_replaceable=is_replaceable,
        )
        launcher = OnnxLauncher(command, connect=_connect, paths=paths, holds_home=holds_home, timings=timings)
        super().__init__(launcher, timings)


def _connect(command: OnnxCommand) -> OnnxHTTP:
    return OnnxHTTP(command.socket, dim=command.info.dim, max_tokens=command.info.max_tokens)
