"""Reads metadata and tensors of a GGUF, for the program that builds a graph of it.

The file is mapped: if another process truncates it meanwhile, SIGBUS ends this process alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of float32 values that are in memory at once while a large tensor is read row by row."""


class UnsupportedModelError(Exception):
    """The reason why no graph can be built for a model, as a part of a sentence."""


class ModelFile:
    """An open GGUF.

    Args:
        path: The file.

    Attributes:
        architecture: `general.architecture`.
        unread: The names of the tensors that nobody has read yet.

    Raises:
        OSError: It cannot be read.
        ValueError: It is broken. So are others of its errors: IndexError, KeyError.
    """

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.unread = set(self._tensors)
        self.architecture = str(self.value("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 # as the types of GGUF are
        """Return a value of the metadata, a list for an array.

        Args:
            key: Its key; "{arch}" stands for the architecture.
            default: What is returned if the file lacks the key; None makes the key necessary.

        Raises:
            UnsupportedModelError: The file lacks a necessary key.
        """
        if "{arch}" in key:
            key = key.format(arch=self.architecture)
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise UnsupportedModelError(f"its file lacks {key}")
        return default

    def raw(self, key: str) -> bytes:
        """Return an array of bytes; b"" if the file lacks it."""
        field = self._reader.get_field(key)
        return b"" if field is None else np.concatenate([field.parts[index] for index in field.data]).tobytes()

    def has(self, name: str) -> bool:
        """Return whether the file has a tensor."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, the row length last.

        Raises:
            UnsupportedModelError: The file lacks the tensor.
        """
        if name not in self._tensors:
            raise UnsupportedModelError(f"its file lacks the tensor {name}")
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def is_half_precision(self, name: str) -> bool:
        """Return whether the values of a tensor are those of float16."""
        return bool(self._tensors[name].tensor_type == gguf.GGMLQuantizationType.F16)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor in float32.

        Raises:
            UnsupportedModelError: The file lacks the tensor, or has it in an unknown form.
        """
        return np.concatenate(list(self.rows(name)))

    def rows(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor in float32, in parts of some rows each.

        Raises:
            UnsupportedModelError: The file lacks the tensor, or has it in an unknown form.
        """
        shape = self.shape(name)
        self.unread.discard(name)
        tensor = self._tensors[name]
        if len(shape) == 1:
            yield _dequantize(tensor.data[np.newaxis], tensor)[0]
            return
        step = max(1, _CHUNK_BYTES // (4 * shape[-1]))
        for start in range(0, shape[0], step):
            yield _dequantize(tensor.data[start : start + step], tensor)


def _dequantize(data: NDArray[Any], tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    try:
        return gguf.quants.dequantize(np.asarray(data), tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
        raise UnsupportedModelError(f"its tensor {tensor.name} has the type {tensor.tensor_type.name}") from None
