"""Starts the worker with ONNX Runtime, and has its graph made before."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from runed.backends.engine.launcher import Launcher
from runed.backends.engine.process import ChildProcess
from runed.backends.engine.server import EngineServer
from runed.backends.onnx.command import OnnxCommand
from runed.backends.onnx.graphs import ensure_graph
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError, ModelFileError
from runed.log import get_logger
from runed.onnx_files import files_of, is_onnx

_DAMAGED = 3
"""Exit code of the worker if it cannot load its graph."""

_log = get_logger(__name__)


class OnnxLauncher(Launcher[OnnxCommand]):
    """Starts the worker for one model, as often as it is needed."""

    _remedy: ClassVar[str] = "install runed anew"

    _removed = False

    def _files_of_model(self) -> list[Path]:
        model = self._command.model
        if not is_onnx(model):
            return [model]
        with suppress(ModelFileError):
            return files_of(model)
        return [model]  # the start tells what is wrong

    async def _launch(self) -> EngineServer:
        command = self._command
        self._check_home()
        self._tried = True  # another engine needs no graph
        await ensure_graph(command.model, command.info.sha256, self._paths, pooling=command.pooling, timings=self._timings)
        return await self._start()

    def _explain(self, error: BackendFaultError | BackendUnavailableError, child: ChildProcess) -> BackendError:
        if isinstance(error, BackendUnavailableError) and child.exited.result() == _DAMAGED and not self._removed:
            self._removed = True  # once, since something else may be wrong
            _log.warning("the graph cannot be loaded and is made anew", output=child.output.tail(1))
            shutil.rmtree(self._command.graph, ignore_errors=True)
        return error
