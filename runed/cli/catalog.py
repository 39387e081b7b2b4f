"""What the commands about models share: the catalog, its models by name, and the words for them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from runed.bootstrap.manifest import manifest_source
from runed.bootstrap.shelf import held
from runed.cli.boundary import complain, tell
from runed.cli.own_onnx import read_onnx
from runed.domain.model import RANK, ModelInfo
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames
from runed.errors import ModelFileError, RunedError
from runed.onnx_files import is_onnx
from runed.own_models import Kind
from runed.paths import Paths
from runed.settings import Settings

_DAEMON_PATIENCE = 5.0
"""Seconds in which a daemon that runs has to answer."""


def open_catalog(settings: Settings, paths: Paths) -> ModelNames:
    """Return all models that requests may name. If a manifest has to be fetched, say so."""
    import asyncio  # noqa: PLC0415 # with the next one, 200 ms that `--help` does not spend

    from runed.bootstrap import Progress, read_catalog  # noqa: PLC0415

    def report(progress: Progress) -> None:
        complain(progress.message)

    def ranks(path: Path) -> bool:
        from runed.backends import gguf  # noqa: PLC0415 # NumPy, which most homes have no file for

        return gguf.ranks(path)

    return asyncio.run(read_catalog(settings, paths, report=report, ranks=ranks))


def read_file(paths: Paths, spec: ModelSpec) -> tuple[ModelInfo | None, str]:
    """Read the file of a model. Return what it tells if it is there, and why it cannot be used."""
    there = held(paths, spec)
    if there.size is None:
        return None, ""
    if is_onnx(there.path):
        return _read_onnx(paths, there.path, spec.pooling)
    from runed.backends.model_info import read_model_info  # noqa: PLC0415 # NumPy, which not every call needs

    try:
        return read_model_info(there.path, kind=spec.kind, pooling=spec.pooling), ""
    except ModelFileError as error:
        return None, error.message


def _read_onnx(paths: Paths, path: Path, pooling: str) -> tuple[ModelInfo | None, str]:
    if not paths.home.is_dir():  # where a file is read for the first time, what was read is kept
        return None, ""
    try:
        return read_onnx(paths, path, pooling=pooling), ""
    except RunedError as error:
        return None, error.message


def origin_of(settings: Settings, spec: ModelSpec) -> str:
    """Return where the file of a model comes from, for people."""
    if spec.remote is not None:
        return f"an engine on another machine, {spec.remote.url}"
    if spec.path is not None:
        return "your own file"
    return spec.source or str(manifest_source(settings))


def kind_of(info: ModelInfo) -> Kind:
    """Return what an entry of `config.json` calls the purpose of a model, by its file."""
    return "rerank" if info.pooling == RANK else "embedding"


def tell_of_use(name: str, kind: str) -> None:
    """Say by which command a model is used. One that reranks cannot be the default model."""
    tell(
        f"use       runed rerank --model {name} QUERY FILE" if kind == ModelKind.RERANK.value else f"use       runed use {name}"
    )


def tell_of_daemon(paths: Paths, added: str = "") -> None:
    """Say that a daemon that runs does not know a change yet.

    Args:
        paths: The paths of the home.
        added: The name of a model that was added, which the daemon may learn at once.
    """
    from runed.lifecycle.asking import Asker  # noqa: PLC0415 # as above
    from runed.lifecycle.spawn import find_process  # noqa: PLC0415 # as above

    if not find_process(paths):
        return
    if added:
        with suppress(RunedError), Asker(paths, timeout=_DAEMON_PATIENCE) as asker:
            asker.health(added)  # a daemon that does not know the name looks for it in the configuration
            tell("daemon    the one that runs has it now, too")
            return
    tell("daemon    the one that runs learns of this at its next start; `runed stop` ends it")


def megabytes(size: int) -> str:
    """Format a size."""
    return f"{size / 1e6:,.0f} MB"


def pooling_of(info: ModelInfo) -> str:
    """Return how a model pools, and whether its file tells another way than the user."""
    if info.file_pooling in {"", info.pooling}:
        return info.pooling
    return (
        f"{info.pooling}, as config.json says; the file tells {info.file_pooling}, and vectors of another pooling mean little"
    )


def quoted(prompt: str) -> str:
    """Format a prompt, whose end and line ends are to be seen."""
    return repr(prompt) if prompt else "none"
