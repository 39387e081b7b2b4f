"""Starts the worker with ONNX Runtime, and has its graph made before."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

from runed.backends.engine.launcher import Launcher
from runed.backends.engine.process import ChildProcess
from runed.backends.engine.server import EngineServer
from runed.backends.onnx.command import OnnxCommand
from runed.backends.onnx.graph_folder import is_complete
from runed.backends.onnx.graphs import ensure_graph
from runed.errors import BackendError, BackendFaultError, BackendUnavailableError, ModelFileError
from runed.files import run_in_thread
from runed.log import get_logger
from runed.onnx_files import files_of, is_onnx

_DAMAGED = 3
"""Exit code of the worker if it cannot load its graph."""

_log = get_logger(__name__)


class _UnreadableGraphError(BackendUnavailableError):
    """The worker cannot load its graph."""


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
        self._check_home()
        self._tried = True  # another engine needs no graph
        is_old = await run_in_thread(partial(is_complete, self._command.graph))
        await self._make_graph()
        try:
            return await self._start()
        except (_UnreadableGraphError, BackendFaultError) as error:
            # A file that was damaged on the disk can have its size still. Often the vectors alone tell it.
            if self._removed or not is_old:
                raise
            self._removed = True  # once, since something else may be wrong
            _log.warning("the graph cannot be used and is made anew", reason=error.message)
            await run_in_thread(partial(shutil.rmtree, self._command.graph, ignore_errors=True))
            try:
                await self._make_graph()
            except BackendError:
                raise error from None  # it tells more
        return await self._start()

    async def _make_graph(self) -> None:
        command = self._command
        await ensure_graph(command.model, command.info.sha256, self._paths, pooling=command.pooling, timings=self._timings)

    def _explain(self, error: BackendFaultError | BackendUnavailableError, child: ChildProcess) -> BackendError:
        if isinstance(error, BackendUnavailableError) and child.exited.result() == _DAMAGED:
            return _UnreadableGraphError(error.message)
        return error
