"""Has the folder of a graph made, by `building` in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from pathlib import Path

from runed.backends.engine.process import ChildProcess, OutputLog
from runed.backends.engine.stillness import Stillness
from runed.backends.engine.timings import Timings
from runed.backends.onnx.graph_folder import graph_folder, is_complete
from runed.errors import BackendUnavailableError, ForeignPathError, ModelFileError
from runed.files import run_in_thread
from runed.log import get_logger
from runed.os_errors import explain
from runed.paths import Paths, ensure_private_dir
from runed.processes import describe_exit
from runed.settings import engine_environment

_TROUBLE, _UNSUPPORTED = 1, 3
"""Exit codes of `building` for troubles of this machine, and for a model of which no graph can be made."""

_PAUSE = 1.0
"""Seconds after which a graph may be made again, if its program was ended."""

_log = get_logger(__name__)


async def ensure_graph(
    model: Path,
    sha256: str,
    paths: Paths,
    *,
    pooling: str = "",
    timings: Timings = Timings(),  # noqa: B008 # immutable
) -> Path:
    """Return the folder of the graph of a model. Make it if it is missing, which takes 1 s for each 50 MB of the file.

    Must be called on the main thread, as `ChildProcess.spawn`. Of two processes that make the same folder, one waits.

    Args:
        model: A GGUF, or a user's own ONNX file.
        sha256: The SHA-256 of the model, in hexadecimal.
        paths: The home.
        pooling: The pooling instead of that of the model, or "".
        timings: The limits of a start hold for the making, too.

    Raises:
        BackendUnavailableError: It could not be made, and another try can help.
        ModelFileError: ONNX Runtime cannot serve the model.
    """
    folder = graph_folder(paths, sha256, pooling)
    if await run_in_thread(partial(is_complete, folder)):
        return folder
    try:
        for directory in (paths.cache, folder.parent, paths.logs):
            ensure_private_dir(directory)
        child = await ChildProcess.spawn(
            [sys.executable, "-P", "-m", "runed.backends.onnx.building", str(model), str(folder)]
            + (["--pooling", pooling] if pooling else []),
            env=python_environment(),
            output=OutputLog(paths.onnx_log),
        )
    except ForeignPathError as error:
        raise BackendUnavailableError(f"the graph for ONNX Runtime cannot be made: {error}") from None
    except OSError as error:
        raise BackendUnavailableError(
            f"the graph for ONNX Runtime cannot be made: {explain(error)}; correct that, and try again"
        ) from None
    await _wait(child, model, timings)
    return folder


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in the folder of a graph, most of which are weights that the worker keeps in memory."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def python_environment() -> dict[str, str]:
    """Return the environment for a program in Python that needs the packages of this process, wherever they were found."""
    return engine_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def _wait(child: ChildProcess, model: Path, timings: Timings) -> None:
    """Wait until the folder is made. End a process that makes no progress, and one that nobody waits for any more."""
    started = time.monotonic()
    _log.info("making the graph for ONNX Runtime", model=model.name, pid=child.pid)
    stillness = Stillness(child, look=timings.look)
    how = ""
    try:
        while not (await asyncio.wait({child.exited}, timeout=timings.look))[0]:
            if stillness.look() > timings.start_stall:
                how = f"made no progress for {timings.start_stall:g} seconds"
            elif time.monotonic() - started > timings.start_limit:
                how = f"was not ready after {timings.start_limit:g} seconds"
            if how:
                break
    finally:
        if not child.exited.done():
            await child.kill()
    code = child.exited.result()
    if how or code:
        raise _failure(child, how or describe_exit(code), code)
    _log.info("made the graph for ONNX Runtime", model=model.name, seconds=round(time.monotonic() - started, 3))


def _failure(child: ChildProcess, how: str, code: int) -> BackendUnavailableError | ModelFileError:
    """Return the error for a folder that was not made."""
    said = child.output.tail(1)
    if code == _UNSUPPORTED and said:
        return ModelFileError(said[0])
    return BackendUnavailableError(
        f"the graph for ONNX Runtime was not made: the program that makes it {how}{child.output.last_words()}",
        # It tells by this code what somebody has to correct. Anything else may have come by chance, as when memory was short.
        retry_after=None if code == _TROUBLE else _PAUSE,
    )
