"""Reads the metadata of a GGUF file before an engine is started on it, and refuses a file that is broken or cut short.

The layout is that of the GGUF specification in the ggml repository (`docs/gguf.md`): a header, key-value pairs, tensor
descriptions, padding, tensor data; everything little-endian. Only the part before the tensor data is read. It is read as a
stream and never mapped: if another process truncated a mapped file, SIGBUS would end the daemon.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runed.domain.model import RANK, reads_last
from runed.domain.model_spec import ModelKind
from runed.errors import ModelFileError, printable
from runed.files import open_regular

MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Most bytes that are read, also of a hostile file. A large vocabulary takes 7 MB (Gemma's 262,144 tokens)."""

_MAX_PAIRS = 10_000
_MAX_TENSORS = 100_000
_MAX_NAME_BYTES = 65_535
_MAX_NAME_LENGTH = 256
"""Characters of the model's name that are shown."""

_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 65_536
_DEFAULT_ALIGNMENT = 32
_MAX_DIM = 65_536
_MAX_INTEGER = 2**31 - 1
_MAX_SPECIAL_TOKENS = 10_000
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

_TOKEN_TYPE = 5
"""Type of the values in `tokenizer.ggml.token_type`, which is int32."""

_SPECIAL_TYPES = (2, 3)
"""Types of special tokens: unknown and control."""

_MAGIC = int.from_bytes(b"GGUF", "little")

_UINT32, _UINT64 = _SCALARS[4], _SCALARS[10]

_POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: RANK}
"""Values of `enum llama_pooling_type`, without 0 (none), which computes nothing of a whole text."""

# fmt: off
_TENSOR_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}
"""Values in a block and bytes of a block, for each `enum ggml_type`."""

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}
"""Names of `enum llama_ftype`, as `llama-quantize` takes them."""
# fmt: on

_VOCABULARY = "tokenizer.ggml.tokens"

_HEAD = "cls.output.weight"
"""The tensor that turns the values of a pair of texts into its score."""

_HEADS = ("cls.weight", _HEAD)
"""Tensors of which a reranker has one at least."""

_ORIGINS = (
    *("general.basename", "general.finetune", "general.repo_url", "general.url", "general.source.repo_url"),
    *("general.source.url", "general.base_model.0.name", "general.base_model.0.repo_url"),
)
"""Keys with further names of a model. The name that a conversion gives may be that of a folder, such as "." or a commit."""

_Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class GGUFMetadata:
    """The metadata of a model.

    Attributes:
        architecture: `general.architecture`, such as "qwen3" or "bert", in printable characters.
        name: `general.name`, or "", in printable characters.
        dim: The number of values of a vector: `<architecture>.embedding_length_out`, or else `<architecture>.embedding_length`.
            They differ if vectors pass a last layer.
        context_length: `<architecture>.context_length`, the most tokens that the model was trained for.
        pooling: "last", "mean" or "cls"; "rank" for a reranker, which scores a pair of texts.
        file_pooling: The pooling that the file tells; "" if it tells none.
        file_type: The name of `general.file_type`, such as "Q6_K"; "" if the file has none.
        add_eos: `tokenizer.ggml.add_eos_token`: whether the engine ends each text with `eos_id`; False if the file does not
            tell.
        eos_id: `tokenizer.ggml.eos_token_id`, or None.
        rope_freq_base: `<architecture>.rope.freq_base`, or None, which makes the engine assume 10,000.
        unknown_id: `tokenizer.ggml.unknown_token_id`, or None.
        special_tokens: Number and text of each special token.
        vocabulary: The number of tokens that the model knows.
        rerank_template: `tokenizer.chat_template.rerank`, the text that a reranker reads, with "{query}" and "{document}"; ""
            if it reads the two texts with special tokens between them.
        origins: Further names of the model, and the addresses of what it was made from, in printable characters.
    """

    architecture: str
    name: str
    dim: int
    context_length: int
    pooling: str
    file_pooling: str
    file_type: str
    add_eos: bool
    eos_id: int | None
    rope_freq_base: float | None
    unknown_id: int | None
    special_tokens: tuple[tuple[int, str], ...]
    vocabulary: int
    rerank_template: str = ""
    origins: tuple[str, ...] = ()


def check_model(path: Path) -> None:
    """Check that a file is a complete GGUF of a model that runed can serve.

    Raises:
        ModelFileError: The file is not.
    """
    read_gguf(path)


def ranks(path: Path) -> bool:
    """Return whether a file is that of a reranker; False for one that cannot be used. It takes as long as `read_gguf`."""
    try:
        return read_gguf(path).pooling == RANK
    except ModelFileError:
        return False


def read_model(path: Path, kind: ModelKind, *, pooling: str = "") -> GGUFMetadata:
    """Read a GGUF as `read_gguf` does, and refuse a model of another kind.

    Args:
        path: The file.
        kind: The wanted kind.
        pooling: As for `read_gguf`.

    Raises:
        ModelFileError: As `read_gguf`; or the model is of another kind.
    """
    metadata = read_gguf(path, pooling=pooling or (RANK if kind is ModelKind.RERANK else ""))
    if kind is ModelKind.EMBEDDING and metadata.pooling == RANK:
        raise ModelFileError(
            f"the model {path} cannot be used for embeddings, since it is a reranker, which scores documents; let it rerank "
            'beside another default model (`runed add PATH`, and no "kind" in its entry of config.json), or get a GGUF of an '
            "embedding model"
        )
    return metadata


def read_gguf(path: Path, *, pooling: str = "") -> GGUFMetadata:
    """Read and check a GGUF. Do not call it in an event loop: the time grows with the vocabulary (0.1 s for 150,000 tokens).

    Args:
        path: The file.
        pooling: The pooling to use instead of that of the file, or "". `RANK` is for files with a classification head.

    Raises:
        ModelFileError: The file cannot be read, is not a GGUF, is cut short, or its model cannot be served.
    """
    with _explained(path):
        with os.fdopen(open_regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            values, special_tokens = _read_head(_Reader(file, size))
        return _interpret(values, special_tokens, pooling)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn each error of the block into a ModelFileError with the name of the file."""
    try:
        yield
    except OSError as error:
        raise ModelFileError(f"the model {path} cannot be read: {error.strerror}; check the path and its permissions") from None
    except _BadFileError as error:
        raise ModelFileError(f"the model {path} cannot be used: {error}") from None


class _BadFileError(Exception):
    """The reason why a file is refused."""


def _broken(what: str) -> _BadFileError:
    return _BadFileError(f"{what}; the file is damaged, so download it again")


class _Reader:
    """A reader that moves forward through the metadata, and keeps it in memory, up to `MAX_METADATA_BYTES`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._data = b""
        self.position = 0
        self.size = size

    def skip(self, count: int) -> int:
        """Step over `count` bytes. Return their position in `_data`."""
        start = self.position
        end = start + count
        if end > len(self._data):
            self._fetch(end)
        self.position = end
        return start

    def _fetch(self, end: int) -> int:
        """Read on, at least to `end`. Return the number of bytes in `_data`."""
        if end > self.size:
            raise _BadFileError(
                f"it is cut short: it has {self.size:,} bytes and its header needs at least {end:,}; download it again"
            )
        if end > MAX_METADATA_BYTES:
            raise _broken(f"its header claims more than {MAX_METADATA_BYTES:,} bytes")
        target = min(max(end, 2 * len(self._data), _FIRST_READ), MAX_METADATA_BYTES)
        self._data += self._file.read(target - len(self._data))
        if end > len(self._data):
            raise _BadFileError("it became shorter while it was read; try again when nobody writes to it")
        return len(self._data)

    def scalar(self, layout: struct.Struct) -> int | float | bool:
        start = self.skip(layout.size)
        value: int | float | bool = layout.unpack_from(self._data, start)[0]
        return value

    def uint32(self) -> int:
        return int(self.scalar(_UINT32))

    def uint64(self) -> int:
        return int(self.scalar(_UINT64))

    def string(self, limit: int = MAX_METADATA_BYTES) -> str:
        length = self.uint64()
        if length > limit:
            raise _broken(f"its header holds a string of {length:,} bytes where at most {limit:,} make sense")
        start = self.skip(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def skip_array(self) -> tuple[int, Sequence[int]]:
        """Step over an array. Return the type and the positions of its values."""
        kind, count = self.uint32(), self.uint64()
        if layout := _SCALARS.get(kind):
            start = self.skip(layout.size * count)
            return kind, range(start, self.position, layout.size)
        if kind == _STRING:
            return kind, self._skip_strings(count)
        raise _broken(f"its header holds an array of the unknown type {kind}")

    def _skip_strings(self, count: int) -> list[int]:
        """Step over a vocabulary. The loop calls no method, since nearly all of the reading time is spent here."""
        position, available, length_at = self.position, len(self._data), _UINT64.unpack_from
        positions = []
        for _ in range(count):  # a false count ends soon, since each turn consumes bytes of the bounded header
            if position + 8 > available:
                available = self._fetch(position + 8)
            positions.append(position)
            position += 8 + length_at(self._data, position)[0]
        self.position = position
        self.skip(0)
        return positions

    def special_tokens(self, arrays: dict[str, tuple[int, Sequence[int]]]) -> tuple[tuple[int, str], ...]:
        """Return the special tokens of a vocabulary; none if the file does not tell its types."""
        kind, tokens = arrays.get(_VOCABULARY, (_STRING, []))
        type_kind, types = arrays.get("tokenizer.ggml.token_type", (_TOKEN_TYPE, []))
        if not types or len(types) != len(tokens) or (kind, type_kind) != (_STRING, _TOKEN_TYPE):
            return ()
        special = np.isin(np.frombuffer(self._data, "<i4", len(types), types[0]), _SPECIAL_TYPES)
        end, found = self.position, []
        for number in np.flatnonzero(special)[:_MAX_SPECIAL_TOKENS].tolist():
            self.position = tokens[number]
            if text := self.string():
                found.append((number, text))
        self.position = end
        return tuple(found)


def _read_head(reader: _Reader) -> tuple[dict[str, _Value], tuple[tuple[int, str], ...]]:
    """Read everything before the tensor data, and check that the tensor data is all there.

    Return the metadata without arrays, and the special tokens.
    """
    if reader.size < _UINT32.size or reader.uint32() != _MAGIC:
        raise _BadFileError("it is not a GGUF file; convert the model with llama.cpp's convert_hf_to_gguf.py")
    version = reader.uint32()
    if version and version & 0xFFFF == 0:
        raise _BadFileError("it is a big-endian GGUF; get the little-endian file of this model")
    if version not in {2, 3}:
        raise _BadFileError(f"it is a GGUF of version {version}, and runed reads 2 and 3; get another conversion of this model")
    tensors, pairs = reader.uint64(), reader.uint64()
    if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
        raise _broken(f"its header claims {tensors:,} tensors and {pairs:,} metadata entries")
    if tensors == 0:
        raise _BadFileError("it holds no tensors, such as a file with only a vocabulary; get the file with the weights")
    values, special_tokens = _read_pairs(reader, pairs)
    alignment = _integer(values, "general.alignment", lowest=1, highest=_MAX_ALIGNMENT) or _DEFAULT_ALIGNMENT
    values[_HEAD] = not _check_tensors(reader, tensors, alignment).isdisjoint(_HEADS)
    return values, special_tokens


def _read_pairs(reader: _Reader, count: int) -> tuple[dict[str, _Value], tuple[tuple[int, str], ...]]:
    """Read the metadata. Of arrays, read the size of the vocabulary and the special tokens. The engine alone needs the rest."""
    values: dict[str, _Value] = {}
    arrays: dict[str, tuple[int, Sequence[int]]] = {}
    for _ in range(count):
        name = reader.string(_MAX_NAME_BYTES)
        kind = reader.uint32()
        if name in values:
            raise _broken(f"its header gives {name!r} twice")
        if kind == _ARRAY:
            arrays[name] = reader.skip_array()
        elif kind == _STRING:
            values[name] = reader.string()
        elif layout := _SCALARS.get(kind):
            values[name] = reader.scalar(layout)
        else:
            raise _broken(f"its header gives {name!r} the unknown type {kind}")
    values[_VOCABULARY] = len(arrays.get(_VOCABULARY, (_STRING, ()))[1])
    return values, reader.special_tokens(arrays)


def _check_tensors(reader: _Reader, count: int, alignment: int) -> set[str]:
    """Refuse a file that ends before its last tensor, such as an interrupted download. Return the names of the tensors."""
    data_size, names = 0, set()
    for _ in range(count):
        name = reader.string(_MAX_NAME_BYTES)
        names.add(name)
        dimensions = reader.uint32()
        if dimensions > _MAX_DIMENSIONS:
            raise _broken(f"its tensor {name!r} has {dimensions:,} dimensions")
        shape = [reader.uint64() for _ in range(dimensions)]
        kind, offset = reader.uint32(), reader.uint64()
        # The engine judges types that are newer than this table. Here, their tensors must only begin inside the file.
        block, block_bytes = _TENSOR_TYPES.get(kind, (1, 0))
        if offset % alignment or (shape and shape[0] % block):
            raise _broken(f"its tensor {name!r} does not fit its type or alignment")
        data_size = max(data_size, offset + math.prod(shape) // block * block_bytes)
    data_start = -(-reader.position // alignment) * alignment
    if data_start + data_size > reader.size:
        raise _BadFileError(
            f"it is cut short: it has {reader.size:,} bytes and its tensors need {data_start + data_size:,}; download it again"
        )
    return names


def _interpret(values: dict[str, _Value], special_tokens: tuple[tuple[int, str], ...], pooling: str) -> GGUFMetadata:
    architecture = _text(values, "general.architecture")
    if not architecture:
        raise _broken("its header names no architecture")
    name = _text(values, "general.name")
    file_pooling = _file_pooling(values, architecture, name)
    pooling = _pooling(values, architecture, told=file_pooling, wanted=pooling)
    template = _text(values, "tokenizer.chat_template.rerank")
    if pooling == RANK and reads_last(RANK, architecture) and not template:
        raise _BadFileError(
            "it is a reranker that reads a question around the two texts, but it lacks the question "
            "(tokenizer.chat_template.rerank), so its scores would mean nothing; get a newer conversion of this model"
        )
    add_eos = values.get("tokenizer.ggml.add_eos_token") is True
    eos_id = _integer(values, "tokenizer.ggml.eos_token_id")
    if pooling == "last" and not (add_eos and eos_id is not None):
        raise _BadFileError(
            "its pooling reads the last token, but it does not ask for the end-of-text token after each text "
            "(tokenizer.ggml.add_eos_token), so its vectors would be wrong; get a newer conversion of this model"
        )
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    rope = values.get(f"{architecture}.rope.freq_base")
    rope_freq_base = rope if isinstance(rope, float) and rope > 0 else None
    if architecture == "qwen3" and rope_freq_base is None:
        raise _BadFileError(
            "it lacks qwen3.rope.freq_base, so its vectors would be wrong; get a newer conversion of this model"
        )
    file_type = _integer(values, "general.file_type")
    return GGUFMetadata(
        architecture=printable(architecture),
        name=printable(name[:_MAX_NAME_LENGTH]),
        dim=_integer(values, f"{architecture}.embedding_length_out", lowest=1, highest=_MAX_DIM)
        or _required(values, f"{architecture}.embedding_length", highest=_MAX_DIM),
        context_length=_required(values, f"{architecture}.context_length", highest=_MAX_INTEGER),
        pooling=pooling,
        file_pooling=file_pooling,
        file_type="" if file_type is None else _FILE_TYPES.get(file_type, f"type {file_type}"),
        add_eos=add_eos,
        eos_id=eos_id,
        rope_freq_base=rope_freq_base,
        unknown_id=unknown if isinstance(unknown, int) else None,
        special_tokens=special_tokens,
        vocabulary=_integer(values, _VOCABULARY) or 0,
        rerank_template=template,
        origins=tuple(printable(text[:_MAX_NAME_LENGTH]) for key in _ORIGINS if (text := _text(values, key))),
    )


def _file_pooling(values: dict[str, _Value], architecture: str, name: str) -> str:
    """Return the pooling that a file tells; "" if it tells none, or one that computes nothing of a whole text."""
    kind = _integer(values, f"{architecture}.pooling_type")
    if kind is None and values[_HEAD]:
        return RANK  # llama.cpp's converter writes no type for cross-encoders of BERT's family, such as bge-reranker-v2-m3
    if kind is None and architecture == "qwen3" and "embed" in name.lower():
        return "last"  # early conversions of Qwen3-Embedding lack the type, as chat models do; the name tells them apart
    return "" if kind is None else _POOLINGS.get(kind, "")


def _pooling(values: dict[str, _Value], architecture: str, *, told: str, wanted: str) -> str:
    """Return the pooling to use.

    Args:
        values: The metadata.
        architecture: The architecture.
        told: The pooling that the file tells, or "".
        wanted: The pooling to use instead, or "".
    """
    if RANK in {told, wanted} and not values[_HEAD]:
        lack = f"it has no classification head ({_HEAD}), so "
        if told == RANK:
            raise _BadFileError(f"{lack}the scores of this reranker would mean nothing; get another conversion of it")
        raise _BadFileError(
            f'{lack}it scores no documents; remove "kind": "rerank" from its entry of config.json, or get a GGUF of a reranker'
        )
    if told == RANK and wanted not in {"", RANK}:
        raise _BadFileError(f"it is a reranker, for which pooling {wanted!r} makes no sense; name no pooling for it")
    if wanted or told:
        return wanted or told
    kind = _integer(values, f"{architecture}.pooling_type")
    if kind is None:
        raise _BadFileError(
            f"it does not say how it pools ({architecture}.pooling_type), so it is a model for chat, or an old conversion; get "
            "a GGUF of an embedding model with pooling type 1 (mean), 2 (cls) or 3 (last). If you know its pooling, name it: "
            "`runed add PATH --name NAME --pooling mean`"
        )
    raise _BadFileError(
        f"it has pooling type {kind} ({architecture}.pooling_type), so it is a model for chat; "
        "get a GGUF of an embedding model with pooling type 1 (mean), 2 (cls) or 3 (last), or of a reranker with 4 (rank)"
    )


def _integer(values: dict[str, _Value], key: str, *, lowest: int = 0, highest: int = _MAX_INTEGER) -> int | None:
    value = values.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest):
        return value
    raise _broken(f"its header gives {key} a value that makes no sense")


def _required(values: dict[str, _Value], key: str, *, highest: int) -> int:
    value = _integer(values, key, lowest=1, highest=highest)
    if value is None:
        raise _broken(f"its header lacks {key}")
    return value


def _text(values: dict[str, _Value], key: str) -> str:
    value = values.get(key, "")
    return value if isinstance(value, str) else ""
