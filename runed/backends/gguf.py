"""Reads the metadata of a GGUF file before an engine is started on it, and refuses a model that cannot be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runed.backends.gguf_head import MAX_INTEGER, BadFileError, Head, Value, broken, explained, integer, read_head
from runed.domain.model import RANK, reads_last
from runed.domain.model_spec import ModelKind
from runed.errors import ModelFileError, printable, quoted

_MAX_NAME_LENGTH = 256
"""Characters of the model's name that are shown."""

_MAX_DIM = 65_536
_MAX_SPECIAL_TOKENS = 10_000

_SPECIAL_TYPES = (2, 3)
"""Types of special tokens: unknown and control."""

_POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: RANK}
"""Values of `enum llama_pooling_type`, without 0 (none), which computes nothing of a whole text."""

# fmt: off
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
    with explained(path):
        return _interpret(read_head(path), pooling)


def _interpret(head: Head, pooling: str) -> GGUFMetadata:
    values = head.values
    values[_HEAD] = not head.tensors.keys().isdisjoint(_HEADS)
    architecture = _text(values, "general.architecture")
    if not architecture:
        raise broken("its header names no architecture")
    name = _text(values, "general.name")
    file_pooling = _file_pooling(values, architecture, name)
    pooling = _pooling(values, architecture, told=file_pooling, wanted=pooling)
    template = _text(values, "tokenizer.chat_template.rerank")
    if pooling == RANK and reads_last(RANK, architecture) and not template:
        raise BadFileError(
            "it is a reranker that reads a question around the two texts, but it lacks the question "
            "(tokenizer.chat_template.rerank), so its scores would mean nothing; get a newer conversion of this model"
        )
    add_eos = values.get("tokenizer.ggml.add_eos_token") is True
    eos_id = integer(values, "tokenizer.ggml.eos_token_id")
    if pooling == "last" and not (add_eos and eos_id is not None):
        raise BadFileError(
            "its pooling reads the last token, but it does not ask for the end-of-text token after each text "
            "(tokenizer.ggml.add_eos_token), so its vectors would be wrong; get a newer conversion of this model"
        )
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    rope = values.get(f"{architecture}.rope.freq_base")
    rope_freq_base = rope if isinstance(rope, float) and rope > 0 else None
    if architecture == "qwen3" and rope_freq_base is None:
        raise BadFileError("it lacks qwen3.rope.freq_base, so its vectors would be wrong; get a newer conversion of this model")
    file_type = integer(values, "general.file_type")
    return GGUFMetadata(
        architecture=printable(architecture),
        name=printable(name[:_MAX_NAME_LENGTH]),
        dim=integer(values, f"{architecture}.embedding_length_out", lowest=1, highest=_MAX_DIM)
        or _required(values, f"{architecture}.embedding_length", highest=_MAX_DIM),
        context_length=_required(values, f"{architecture}.context_length", highest=MAX_INTEGER),
        pooling=pooling,
        file_pooling=file_pooling,
        file_type="" if file_type is None else _FILE_TYPES.get(file_type, f"type {file_type}"),
        add_eos=add_eos,
        eos_id=eos_id,
        rope_freq_base=rope_freq_base,
        unknown_id=unknown if isinstance(unknown, int) else None,
        special_tokens=_special_tokens(head),
        vocabulary=head.count(_VOCABULARY),
        rerank_template=template,
        origins=tuple(printable(text[:_MAX_NAME_LENGTH]) for key in _ORIGINS if (text := _text(values, key))),
    )


def _special_tokens(head: Head) -> tuple[tuple[int, str], ...]:
    """Return number and text of each special token; none if the file does not tell the types of its tokens."""
    types = head.numbers("tokenizer.ggml.token_type")
    if types.dtype != np.int32 or len(types) != head.count(_VOCABULARY):
        return ()
    numbers = np.flatnonzero(np.isin(types, _SPECIAL_TYPES))[:_MAX_SPECIAL_TOKENS].tolist()
    return tuple((number, text) for number, text in zip(numbers, head.strings(_VOCABULARY, numbers), strict=True) if text)


def _file_pooling(values: dict[str, Value], architecture: str, name: str) -> str:
    """Return the pooling that a file tells; "" if it tells none, or one that computes nothing of a whole text."""
    kind = integer(values, f"{architecture}.pooling_type")
    if kind is None and values[_HEAD]:
        return RANK  # llama.cpp's converter writes no type for cross-encoders of BERT's family, such as bge-reranker-v2-m3
    if kind is None and architecture == "qwen3" and "embed" in name.lower():
        return "last"  # early conversions of Qwen3-Embedding lack the type, as chat models do; the name tells them apart
    return "" if kind is None else _POOLINGS.get(kind, "")


def _pooling(values: dict[str, Value], architecture: str, *, told: str, wanted: str) -> str:
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
            raise BadFileError(f"{lack}the scores of this reranker would mean nothing; get another conversion of it")
        raise BadFileError(
            f'{lack}it scores no documents; remove "kind": "rerank" from its entry of config.json, or get a GGUF of a reranker'
        )
    if told == RANK and wanted not in {"", RANK}:
        raise BadFileError(f"it is a reranker, for which pooling {quoted(wanted)} makes no sense; name no pooling for it")
    if wanted or told:
        return wanted or told
    kind = integer(values, f"{architecture}.pooling_type")
    if kind is None:
        raise BadFileError(
            f"it does not say how it pools ({architecture}.pooling_type), so it is a model for chat, or an old conversion; get "
            "a GGUF of an embedding model with pooling type 1 (mean), 2 (cls) or 3 (last). If you know its pooling, name it: "
            "`runed add PATH --name NAME --pooling mean`"
        )
    raise BadFileError(
        f"it has pooling type {kind} ({architecture}.pooling_type), so it is a model for chat; "
        "get a GGUF of an embedding model with pooling type 1 (mean), 2 (cls) or 3 (last), or of a reranker with 4 (rank)"
    )


def _required(values: dict[str, Value], key: str, *, highest: int) -> int:
    value = integer(values, key, lowest=1, highest=highest)
    if value is None:
        raise broken(f"its header lacks {key}")
    return value


def _text(values: dict[str, Value], key: str) -> str:
    value = values.get(key, "")
    return value if isinstance(value, str) else ""
