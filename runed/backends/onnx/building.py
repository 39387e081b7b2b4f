"""The program that makes the folder of a graph: `python -m runed.backends.onnx.building MODEL FOLDER [--pooling POOLING]`.

It is a process of its own: its packages and its memory are gone at its end, and a damaged file ends nothing else. It returns 0
if the folder is complete, 3 if no graph can be built for this model, and 1 for troubles of this machine, such as a full disk.
Its standard error tells the reason in one line.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runed.backends.gguf import read_gguf
from runed.backends.onnx.encoder import INPUTS, Encoder
from runed.backends.onnx.graph_folder import (
    ARCHITECTURES,
    GRAPH,
    POOLINGS,
    RECORD,
    TOKENIZER,
    WEIGHTS,
    GraphInfo,
    is_complete,
    remove_outdated,
)
from runed.backends.onnx.graph_writer import GraphWriter
from runed.backends.onnx.model_file import ModelFile, UnsupportedModelError
from runed.backends.onnx.own_file import describe_own_file
from runed.backends.onnx.tokenization import make_tokenizer, pad_id
from runed.errors import ModelFileError, quoted
from runed.files import replace_durably, sync_path
from runed.locking import LockFile
from runed.onnx_files import is_onnx
from runed.os_errors import explain, naming

UNSUPPORTED = 3
"""Exit code: no graph can be built for this model."""

_LOOK_SECONDS = 0.1
"""Seconds between two looks whether another process has built the folder."""


def main(argv: list[str] | None = None) -> int:
    """Build a folder. Return the exit code."""
    parser = argparse.ArgumentParser(description="Build the graph of a model for ONNX Runtime.")
    parser.add_argument("model", type=Path, help="a GGUF, or a model.onnx with its tokenizer.json")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--pooling", default="", choices=["", *sorted(POOLINGS)], help="instead of the pooling of the model")
    arguments = parser.parse_args(argv)
    try:
        build(arguments.model, arguments.folder, arguments.pooling)
    except ModelFileError as error:
        return _tell(str(error), UNSUPPORTED)
    except UnsupportedModelError as error:
        return _tell(f"ONNX Runtime cannot serve {arguments.model}: {error}", UNSUPPORTED)
    except OSError as error:
        return _tell(f"the graph of {arguments.model} cannot be made: {explain(error)}; correct that, and try again", 1)
    return 0


def _tell(reason: str, code: int) -> int:
    """Write the reason in one line, since that of a library may have several. Return the exit code."""
    sys.stderr.write(" ".join(reason.split()) + "\n")
    return code


def build(model: Path, folder: Path, pooling: str = "") -> None:
    """Make the folder of a model, unless it is complete. A reader sees no folder or a complete one.

    Args:
        model: A GGUF, or a user's own ONNX file.
        folder: The folder. Its directory is made if it is missing.
        pooling: The pooling instead of that of the model, or "".

    Raises:
        ModelFileError: The model is broken.
        OSError: The disk is full, or the like.
        UnsupportedModelError: No graph can be built for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with LockFile(folder.parent / f".{folder.name}.lock") as lock:
        while not lock.try_acquire():
            time.sleep(_LOOK_SECONDS)
        if is_complete(folder):
            return
        partial = folder.with_name(f".{folder.name}.partial")
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            make: Callable[[Path, Path, str], GraphInfo] = describe_own_file if is_onnx(model) else _convert
            with naming(partial):
                _finish(partial, make(model, partial, pooling))
            replace_durably(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        remove_outdated(folder)


def _convert(model: Path, folder: Path, pooling: str) -> GraphInfo:
    """Write graph, weights and tokenizer of a GGUF."""
    metadata = read_gguf(model, pooling=pooling)  # refuses a damaged file in the words of the daemon
    if metadata.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(f"its architecture is {quoted(metadata.architecture)}, and graphs are built for {known}")
    file = ModelFile(model)
    with GraphWriter(folder / WEIGHTS) as graph:
        encoder = Encoder(file, graph)
        output = encoder.write(metadata.pooling)
        graph.write(folder / GRAPH, INPUTS, output, encoder.dim)
    make_tokenizer(file).save(str(folder / TOKENIZER), pretty=False)
    return GraphInfo(
        architecture=metadata.architecture,
        dim=encoder.dim,
        max_tokens=encoder.max_tokens,
        pooling="none",
        normalized=True,
        inputs=list(INPUTS),
        output=output,
        pad_id=pad_id(file),
    )


def _finish(folder: Path, info: GraphInfo) -> None:
    """Write the record, and bring everything to the disk."""
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / RECORD).write_bytes(msgspec.json.encode(msgspec.structs.replace(info, files=files)))
    for path in folder.iterdir():
        path.chmod(0o600)
        sync_path(path)


if __name__ == "__main__":
    sys.exit(main())
