"""The folder with all that the worker reads of a model: the graph, the weights, the tokenizer, and `graph.json`.

`building` makes it in a process of its own. This module imports none of the packages that this takes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from runed.files import read_record
from runed.paths import Paths

BUILDER = 1
"""The version of what `building` makes. A folder of another version is made anew."""

ARCHITECTURES = frozenset({"bert", "nomic-bert"})
"""Architectures of GGUF files for which a graph can be built: also of XLM-RoBERTa, which llama.cpp calls "bert"."""

POOLINGS = frozenset({"mean", "cls", "last"})

RECORD = "graph.json"
GRAPH = "model.onnx"
WEIGHTS = "weights.bin"
TOKENIZER = "tokenizer.json"

_FORMAT = 1
_NAME = re.compile(r"(?P<model>[0-9a-f]{16})-(?P<builder>\d+)(?:-[a-z]+)?")


class GraphInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `graph.json`.

    Attributes:
        version: The version of the format of this record.
        builder: `BUILDER` of the program that made the folder.
        architecture: The architecture of the model, such as "bert".
        dim: The number of values of a vector.
        max_tokens: The most tokens of a text, including special tokens.
        pooling: "none" if the graph returns one vector a text; otherwise how the worker pools: "mean", "cls" or "last".
        normalized: Whether the vectors of the graph have L2 norm 1.
        inputs: The names of the graph's inputs.
        output: The name of its output: float32, (texts, dim) if `pooling` is "none", else (texts, tokens, dim).
        rank: Whether the output is a score.
        pad_id: The token that fills the rows of shorter texts.
        unknown_token: The token that stands for unknown characters, or None.
        special_tokens: Number and text of each special token.
        name: The name that the model's files tell, or "".
        model: The path of the graph: `GRAPH` in the folder, or the absolute path of a user's own file.
        files: Bytes of each other file of the folder, by its name.
    """

    version: int = _FORMAT
    builder: int = BUILDER
    architecture: str
    dim: int
    max_tokens: int
    pooling: str
    normalized: bool
    inputs: list[str]
    output: str
    rank: bool = False
    pad_id: int
    unknown_token: int | None = None
    special_tokens: list[tuple[int, str]] = []
    name: str = ""
    model: str = GRAPH
    files: dict[str, int] = {}


def graph_folder(paths: Paths, sha256: str, pooling: str = "") -> Path:
    """Return the place of the folder of a model.

    Args:
        paths: The paths of the home.
        sha256: The SHA-256 of the model, in hexadecimal.
        pooling: The pooling instead of that of the model's file, or "".
    """
    return _folders(paths) / "-".join([sha256[:16], str(BUILDER), *([pooling] if pooling else [])])


def read_graph(folder: Path) -> GraphInfo | None:
    """Return the record of a complete folder; None if a file is missing, cut short, or of another version.

    The sizes of the files are looked at, not their content, since it is looked at before each start of an engine.
    """
    info = read_record(folder / RECORD, GraphInfo)
    if info is None or (info.version, info.builder) != (_FORMAT, BUILDER) or not info.files:
        return None
    try:
        complete = all((folder / name).stat().st_size == size for name, size in info.files.items())
        return info if complete and (folder / info.model).is_file() else None
    except OSError:
        return None


def is_complete(folder: Path) -> bool:
    """Return whether the worker can use a folder."""
    return read_graph(folder) is not None


def remove_graphs(paths: Paths, sha256: str) -> int:
    """Remove all folders of a model, also unfinished ones. Return the bytes that became free."""
    for lock in _folders(paths).glob(f".{sha256[:16]}-*.lock"):
        lock.unlink(missing_ok=True)
    return _remove(path for pattern in ("", ".") for path in _folders(paths).glob(f"{pattern}{sha256[:16]}-*"))


def remove_outdated(folder: Path) -> int:
    """Remove what other versions of the builder made of the same model. Return the bytes that became free."""
    if not (name := _NAME.fullmatch(folder.name)):
        return 0
    siblings = ((sibling, _NAME.fullmatch(sibling.name)) for sibling in folder.parent.iterdir())
    return _remove(
        [path for path, other in siblings if other and other["model"] == name["model"] and other["builder"] != name["builder"]]
    )


def _folders(paths: Paths) -> Path:
    return paths.cache / "onnx"


def _remove(folders: Iterable[Path]) -> int:
    freed = 0
    for folder in list(folders):
        freed += sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())
        shutil.rmtree(folder)
    return freed
