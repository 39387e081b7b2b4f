"""Reads the head of a GGUF file, and refuses a file that is broken or cut short.

The layout is that of the GGUF specification in the ggml repository (`docs/gguf.md`): a header, key-value pairs, tensor
descriptions, padding, tensor data; everything little-endian. Only the part before the tensor data is read. It is read as a
stream and never mapped: if another process truncated a mapped file, SIGBUS would end the daemon.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runed.errors import ModelFileError, quoted
from runed.files import open_regular

MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Most bytes that are read, also of a hostile file. A large vocabulary takes 7 MB (Gemma's 262,144 tokens)."""

_MAX_PAIRS = 10_000
_MAX_TENSORS = 100_000
_MAX_NAME_BYTES = 65_535
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 65_536
_DEFAULT_ALIGNMENT = 32
MAX_INTEGER = 2**31 - 1
_FIRST_READ = 256 * 1024

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""Layout of each GGUF value type with a fixed size."""

_STRING, _ARRAY = 8, 9

_MAGIC = int.from_bytes(b"GGUF", "little")

_UINT32, _UINT64 = _SCALARS[4], _SCALARS[10]

# fmt: off
_TENSOR_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}
"""Values in a block and bytes of a block, for each `enum ggml_type`."""
# fmt: on

Value = int | float | bool | str

_Array = tuple[int, Sequence[int]]
"""The type of the values of an array, and the position of each in the head."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor is in the file.

    Attributes:
        shape: Its shape, the length of a row last.
        kind: Its `enum ggml_type`.
        start: The position of its first byte.
        size: Its bytes; 0 if its type is unknown here.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Head:
    """The head of a GGUF.

    Args:
        values: The metadata without arrays.
        arrays: The arrays, by their keys.
        tensors: The tensors, by their names.
        data: The bytes of the head.

    Attributes:
        values: As given.
        tensors: As given.
    """

    def __init__(
        self, values: dict[str, Value], arrays: dict[str, _Array], tensors: dict[str, TensorPlace], data: bytes
    ) -> None:
        self.values = values
        self.tensors = tensors
        self._arrays = arrays
        self._data = data

    def count(self, key: str) -> int:
        """Return the number of values of an array; 0 if there is none."""
        return len(self._arrays.get(key, (_STRING, ()))[1])

    def numbers(self, key: str) -> NDArray[Any]:
        """Return an array of numbers in the type of the file; an empty one if there is none."""
        kind, places = self._arrays.get(key, (_STRING, ()))
        if not places or kind == _STRING:
            return np.zeros(0, np.int32)
        return np.frombuffer(self._data, _SCALARS[kind].format, len(places), places[0])

    def strings(self, key: str, chosen: Iterable[int] | None = None) -> list[str]:
        """Return an array of texts, or the chosen ones of them; [] if there is none."""
        kind, places = self._arrays.get(key, (_STRING, ()))
        if kind != _STRING:
            return []
        return [self._string(place) for place in (places if chosen is None else (places[number] for number in chosen))]

    def _string(self, place: int) -> str:
        start = place + _UINT64.size
        return self._data[start : start + _UINT64.unpack_from(self._data, place)[0]].decode("utf-8", "replace")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn each error of the block into a ModelFileError with the name of the file."""
    try:
        yield
    except OSError as error:
        raise ModelFileError(f"the model {path} cannot be read: {error.strerror}; check the path and its permissions") from None
    except BadFileError as error:
        raise ModelFileError(f"the model {path} cannot be used: {error}") from None


class BadFileError(Exception):
    """The reason why a file is refused."""


def broken(what: str) -> BadFileError:
    """Return the error for a damaged file."""
    return BadFileError(f"{what}; the file is damaged, so download it again")


def read_head(path: Path) -> Head:
    """Read everything before the tensor data, and check that the tensor data is all there.

    Raises:
        BadFileError: The file is none that runed reads, or is damaged.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        reader = _Reader(file, size)
        tensors, pairs = _read_counts(reader)
        values, arrays = _read_pairs(reader, pairs)
        alignment = integer(values, "general.alignment", lowest=1, highest=_MAX_ALIGNMENT) or _DEFAULT_ALIGNMENT
        places = _read_tensors(reader, tensors, alignment)
        return Head(values, arrays, places, reader.data)


def _read_counts(reader: _Reader) -> tuple[int, int]:
    """Read the header. Return the numbers of tensors and of pairs."""
    if reader.size < _UINT32.size or reader.uint32() != _MAGIC:
        raise BadFileError("it is not a GGUF file; convert the model with llama.cpp's convert_hf_to_gguf.py")
    version = reader.uint32()
    if version and version & 0xFFFF == 0:
        raise BadFileError("it is a big-endian GGUF; get the little-endian file of this model")
    if version not in {2, 3}:
        raise BadFileError(f"it is a GGUF of version {version}, and runed reads 2 and 3; get another conversion of this model")
    tensors, pairs = reader.uint64(), reader.uint64()
    if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
        raise broken(f"its header claims {tensors:,} tensors and {pairs:,} metadata entries")
    if tensors == 0:
        raise BadFileError("it holds no tensors, such as a file with only a vocabulary; get the file with the weights")
    return tensors, pairs


class _Reader:
    """A reader that moves forward through the head, and keeps it in memory, up to `MAX_METADATA_BYTES`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.data = b""
        self.position = 0
        self.size = size

    def skip(self, count: int) -> int:
        """Step over `count` bytes. Return their position in `data`."""
        start = self.position
        end = start + count
        if end > len(self.data):
            self._fetch(end)
        self.position = end
        return start

    def _fetch(self, end: int) -> int:
        """Read on, at least to `end`. Return the number of bytes in `data`."""
        if end > self.size:
            raise BadFileError(
                f"it is cut short: it has {self.size:,} bytes and its header needs at least {end:,}; download it again"
            )
        if end > MAX_METADATA_BYTES:
            raise broken(f"its header claims more than {MAX_METADATA_BYTES:,} bytes")
        target = min(max(end, 2 * len(self.data), _FIRST_READ), MAX_METADATA_BYTES)
        self.data += self._file.read(target - len(self.data))
        if end > len(self.data):
            raise BadFileError("it became shorter while it was read; try again when nobody writes to it")
        return len(self.data)

    def scalar(self, layout: struct.Struct) -> int | float | bool:
        start = self.skip(layout.size)
        value: int | float | bool = layout.unpack_from(self.data, start)[0]
        return value

    def uint32(self) -> int:
        return int(self.scalar(_UINT32))

    def uint64(self) -> int:
        return int(self.scalar(_UINT64))

    def string(self, limit: int = MAX_METADATA_BYTES) -> str:
        length = self.uint64()
        if length > limit:
            raise broken(f"its header holds a string of {length:,} bytes where at most {limit:,} make sense")
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def skip_array(self) -> _Array:
        """Step over an array. Return the type and the positions of its values."""
        kind, count = self.uint32(), self.uint64()
        if layout := _SCALARS.get(kind):
            start = self.skip(layout.size * count)
            return kind, range(start, self.position, layout.size)
        if kind == _STRING:
            return kind, self._skip_strings(count)
        raise broken(f"its header holds an array of the unknown type {kind}")

    def _skip_strings(self, count: int) -> list[int]:
        """Step over a vocabulary. The loop calls no method, since nearly all of the reading time is spent here."""
        position, available, length_at = self.position, len(self.data), _UINT64.unpack_from
        positions = []
        for _ in range(count):  # a false count ends soon, since each turn consumes bytes of the bounded header
            if position + 8 > available:
                available = self._fetch(position + 8)
            positions.append(position)
            position += 8 + length_at(self.data, position)[0]
        self.position = position
        self.skip(0)
        return positions


def _read_pairs(reader: _Reader, count: int) -> tuple[dict[str, Value], dict[str, _Array]]:
    """Read the metadata. Of arrays, read where their values are. The engine alone needs most of them."""
    values: dict[str, Value] = {}
    arrays: dict[str, _Array] = {}
    for _ in range(count):
        name = reader.string(_MAX_NAME_BYTES)
        kind = reader.uint32()
        if name in values:
            raise broken(f"its header gives {quoted(name)} twice")
        if kind == _ARRAY:
            arrays[name] = reader.skip_array()
        elif kind == _STRING:
            values[name] = reader.string()
        elif layout := _SCALARS.get(kind):
            values[name] = reader.scalar(layout)
        else:
            raise broken(f"its header gives {quoted(name)} the unknown type {kind}")
    return values, arrays


def _read_tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorPlace]:
    """Return the place of each tensor. Refuse a file that ends before its last tensor, such as an interrupted download."""
    found: dict[str, TensorPlace] = {}
    for _ in range(count):
        name = reader.string(_MAX_NAME_BYTES)
        dimensions = reader.uint32()
        if dimensions > _MAX_DIMENSIONS:
            raise broken(f"its tensor {quoted(name)} has {dimensions:,} dimensions")
        shape = [reader.uint64() for _ in range(dimensions)]
        kind, offset = reader.uint32(), reader.uint64()
        # The engine judges types that are newer than this table. Here, their tensors must only begin inside the file.
        block, block_bytes = _TENSOR_TYPES.get(kind, (1, 0))
        if offset % alignment or (shape and shape[0] % block):
            raise broken(f"its tensor {quoted(name)} does not fit its type or alignment")
        if name in found:
            raise broken(f"its header gives the tensor {quoted(name)} twice")
        found[name] = TensorPlace(tuple(reversed(shape)), kind, offset, math.prod(shape) // block * block_bytes)
    data_start = -(-reader.position // alignment) * alignment
    data_size = max(place.start + place.size for place in found.values())
    if data_start + data_size > reader.size:
        raise BadFileError(
            f"it is cut short: it has {reader.size:,} bytes and its tensors need {data_start + data_size:,}; download it again"
        )
    return {name: replace(place, start=data_start + place.start) for name, place in found.items()}


def integer(values: dict[str, Value], key: str, *, lowest: int = 0, highest: int = MAX_INTEGER) -> int | None:
    """Return a whole number of the metadata; None if there is none.

    Raises:
        BadFileError: It is something else, or out of range.
    """
    value = values.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest):
        return value
    raise broken(f"its header gives {key} a value that makes no sense")
