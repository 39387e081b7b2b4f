"""Reads the tensors of a GGUF in float32, for the program that builds a graph of it.

The file is mapped: if another process truncates it meanwhile, SIGBUS ends this process alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from runed.backends.gguf_head import TensorPlace, explained, read_head

_CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of float32 values that are in memory at once while a large tensor is read row by row."""

T = TypeVar("T", bool, int, float, str)


class UnsupportedModelError(Exception):
    """The reason why no graph can be built for a model, as a part of a sentence."""


class ModelFile:
    """An open GGUF.

    Args:
        path: The file.

    Attributes:
        head: Its head.
        architecture: `general.architecture`.
        unread: The names of the tensors that nobody has read yet.

    Raises:
        ModelFileError: It cannot be read, or is broken.
    """

    def __init__(self, path: Path) -> None:
        with explained(path):
            self.head = read_head(path)
            self._data = np.memmap(path, np.uint8, "r")
        self.architecture = self.value("general.architecture", str)
        self.unread = set(self.head.tensors)

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of the metadata.

        Args:
            key: Its key; "{arch}" stands for the architecture.
            kind: Its type.
            default: What is returned if the file lacks the key; None makes the key necessary.

        Raises:
            UnsupportedModelError: The file lacks a necessary key, or has a value of another type.
        """
        if "{arch}" in key:
            key = key.format(arch=self.architecture)
        value = self.head.values.get(key, default)
        if isinstance(value, kind):
            return value
        raise UnsupportedModelError(f"its file lacks {key}, or has nonsense there")

    def has(self, name: str) -> bool:
        """Return whether the file has a tensor."""
        return name in self.head.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, the length of a row last.

        Raises:
            UnsupportedModelError: The file lacks the tensor.
        """
        return self._place(name).shape

    def is_half_precision(self, name: str) -> bool:
        """Return whether the values of a tensor are those of float16."""
        return self._place(name).kind == GGMLQuantizationType.F16

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor in float32.

        Raises:
            UnsupportedModelError: The file lacks the tensor, or has it in an unknown form.
        """
        return np.concatenate(list(self.rows(name))).reshape(self.shape(name))

    def rows(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor in float32, in parts of some rows each.

        Raises:
            UnsupportedModelError: The file lacks the tensor, or has it in an unknown form.
        """
        place = self._place(name)
        self.unread.discard(name)
        width = place.shape[-1]
        count = math.prod(place.shape[:-1])
        step = max(1, _CHUNK_BYTES // (4 * width))
        data = self._data[place.start : place.start + place.size].reshape(count, -1)
        try:
            kind = GGMLQuantizationType(place.kind)
            for start in range(0, count, step):
                yield dequantize(np.asarray(data[start : start + step]), kind)
        except (NotImplementedError, ValueError):
            raise UnsupportedModelError(f"its tensor {name} has a type that is unknown here") from None

    def _place(self, name: str) -> TensorPlace:
        if name not in self.head.tensors:
            raise UnsupportedModelError(f"its file lacks the tensor {name}")
        return self.head.tensors[name]
