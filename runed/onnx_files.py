"""The files of a model in the format ONNX: the graph, its weights, and the files of the model's folder that belong to it.

Only the descriptions of the graph are read, in the wire format of protobuf, so that this needs no package. The weights are
skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from runed.errors import ModelFileError, quoted
from runed.files import open_regular

TOKENIZER = "tokenizer.json"
"""The file with the tokenizer of a model, as the package `tokenizers` writes it."""

_CONFIGURATIONS = (
    *("config.json", "modules.json", "sentence_bert_config.json", "tokenizer_config.json", "1_Pooling/config.json"),
)
"""Further files of the model's folder that decide what a vector is. Each may be missing."""

_GRAPH_OF_MODEL = 7
"""Number of the field of a model (`onnx.proto`) with its graph."""

_PARTS = {
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {13: "external"},
}
"""Numbers of the fields that lead to the names of files, by the message that they are in."""

_MAX_DEPTH = 32
"""Most messages in each other. A graph in a graph takes three."""

_MAX_NAME = 4096
"""Most bytes of the name of a file."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
"""Types of fields in the wire format."""

_NOT_WHOLE = "it is cut short, or not an ONNX file"


def is_onnx(path: Path) -> bool:
    """Return whether a file is a model in the format ONNX, by its name."""
    return path.suffix.lower() == ".onnx"


def model_folder(path: Path) -> Path:
    """Return the folder of a model: that of its file, or the one above, as in `folder/onnx/model.onnx`.

    Raises:
        ModelFileError: Neither has a tokenizer.
    """
    for folder in (path.parent, path.parent.parent):
        if (folder / TOKENIZER).is_file():
            return folder
    raise ModelFileError(
        f"the model {path} has no {TOKENIZER} beside it; copy that of the model there: "
        "sentence-transformers and transformers save it with the model"
    )


def files_of(path: Path) -> list[Path]:
    """Return all files of a model that decide what its vectors are: the file itself first.

    Raises:
        ModelFileError: It is not an ONNX file, or a file that it needs is missing.
    """
    folder = model_folder(path)
    configurations = (folder / name for name in _CONFIGURATIONS)
    return [path, *_weights(path), folder / TOKENIZER, *(each for each in configurations if each.is_file())]


def _weights(path: Path) -> list[Path]:
    """Return the files beside a model that hold its weights; none if it holds them itself."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            names = sorted(set(_external_names(file)))
    except (_BadFileError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(f"the model {path} cannot be used: {why}; export it again, or download it again") from None
    files = []
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ModelFileError(
                f"the model {path} names {quoted(name)} as a file with weights; accepted are names in its own folder"
            )
        files.append(path.parent / name)
        if not files[-1].is_file():
            raise ModelFileError(
                f"the model {path} keeps weights in {quoted(name)}, which is not beside it; copy that file, too"
            )
    return files


class _BadFileError(Exception):
    """The file is broken, or no ONNX file."""


def _external_names(file: BinaryIO) -> Iterator[str]:
    """Yield the names of files that hold tensors of a model, some of them many times."""
    has_graph = False
    for number, stop in _fields(file, os.fstat(file.fileno()).st_size):
        if number == _GRAPH_OF_MODEL:
            has_graph = True
            yield from _names_in(file, "graph", stop, depth=0)
        file.seek(stop)
    if not has_graph:
        raise _BadFileError("it is not an ONNX file")


def _names_in(file: BinaryIO, message: str, end: int, *, depth: int) -> Iterator[str]:
    """Yield the names in one message, and in those that it contains."""
    if depth > _MAX_DEPTH:
        raise _BadFileError("its graphs are too deep")
    for number, stop in _fields(file, end):
        part = _PARTS[message].get(number)
        if part == "external":
            if (name := _location(file, stop)) is not None:
                yield name
        elif part is not None:
            yield from _names_in(file, part, stop, depth=depth + 1)
        file.seek(stop)


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield the number of each field that has a length, and the place of its end. The file stands at its beginning."""
    while file.tell() < end:
        tag = _varint(file)
        kind = tag & 7
        if kind == _LENGTH:
            stop = _varint(file) + file.tell()
            if stop > end:
                raise _BadFileError(_NOT_WHOLE)
            yield tag >> 3, stop
        elif kind == _VARINT:
            _varint(file)
        elif kind in {_FIXED64, _FIXED32}:
            file.seek(8 if kind == _FIXED64 else 4, os.SEEK_CUR)
        else:
            raise _BadFileError("it is not an ONNX file")
    if file.tell() != end:
        raise _BadFileError(_NOT_WHOLE)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:  # no further byte belongs to the number
            return value
    raise _BadFileError(_NOT_WHOLE)


def _location(file: BinaryIO, end: int) -> str | None:
    """Return the value of an entry with the key "location"; None for another entry."""
    parts = {}
    for number, stop in _fields(file, end):
        size = stop - file.tell()
        if size > _MAX_NAME:
            raise _BadFileError("a name in it is too long")
        parts[number] = file.read(size)
    if parts.get(1) != b"location":
        return None
    try:
        return parts.get(2, b"").decode()
    except UnicodeDecodeError:
        raise _BadFileError("the name of a file in it is not UTF-8") from None
