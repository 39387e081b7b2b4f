"""Writes encoders with random weights, without a download: BERT, XLM-RoBERTa and nomic-bert, as llama.cpp's converter does.

Their vocabulary is that of all-MiniLM-L6-v2, which has pieces of many scripts. XLM-RoBERTa gets the same pieces with scores,
and the character map of SentencePiece that its own tokenizer has. The same arguments make the same bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from tools.minilm import add_vocabulary, package_folder

Kind = Literal["bert", "xlm-roberta", "nomic-bert"]

Value = bool | int | str

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_UNUSED = 8
"""Unused tokens at the end of XLM-RoBERTa's vocabulary, which the converter gives a score of -10,000."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model. K-quants need rows of a multiple of 256 values.

    Attributes:
        dim: The number of values of a vector.
        layers: The number of blocks.
        heads: The number of attention heads.
        feed_forward: The number of values between the two halves of a block's feed-forward network.
        context: The longest text, in tokens.
    """

    dim: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    context: int = 512


class _Writer:
    """Writes random tensors."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def add(self, name: str, *size: int, scale: float, offset: float = 0) -> None:
        values = self._random.standard_normal(size, dtype=np.float32) * np.float32(scale) + np.float32(offset)
        self._writer.add_tensor(name, values.astype(np.float32))

    def norm(self, name: str, dim: int) -> None:
        self.add(f"{name}.weight", dim, scale=0.1, offset=1)
        self.add(f"{name}.bias", dim, scale=0.1)

    def product(self, name: str, out: int, into: int, *, bias: bool) -> None:
        # With this scale, the values keep their size from layer to layer, like those of a trained model.
        self.add(f"{name}.weight", out, into, scale=into**-0.5)
        if bias:
            self.add(f"{name}.bias", out, scale=0.1)


def write(
    path: Path,
    kind: Kind,
    shape: Shape = Shape(),
    *,
    pooling: str = "MEAN",
    seed: int = 0,
    metadata: Mapping[str, Value] | None = None,
) -> None:
    """Write a model in float32.

    Args:
        path: The GGUF to write; its directory must exist.
        kind: The model. llama.cpp calls XLM-RoBERTa "bert", too, and takes its positions from the first one in use.
        shape: The sizes.
        pooling: A name of `gguf.PoolingType`.
        seed: The seed of the random weights.
        metadata: Entries of the metadata that get other values.
    """
    nomic = kind == "nomic-bert"
    writer = gguf.GGUFWriter(path, kind if nomic else "bert")
    writer.add_name(f"{kind}-random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-5 if kind == "xlm-roberta" else 1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType[pooling])
    if pooling == "LAST" and kind != "xlm-roberta":  # which has the same entry anyway
        writer.add_add_eos_token(True)
    if nomic:
        writer.add_rope_freq_base(1000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    size = _add_unigram(writer) if kind == "xlm-roberta" else _add_word_piece(writer)
    _add_tensors(_Writer(writer, seed), shape, size, kind)
    for key, value in (metadata or {}).items():
        _set(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _set(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    writer.kv_data[0].pop(key, None)
    writer.add_key_value(key, value, kinds[type(value)])


def _add_tensors(tensors: _Writer, shape: Shape, vocabulary: int, kind: Kind) -> None:
    dim, nomic = shape.dim, kind == "nomic-bert"
    tensors.add("token_embd.weight", vocabulary, dim, scale=1)
    tensors.add("token_types.weight", 1 if kind == "xlm-roberta" else 2, dim, scale=0.3)
    if not nomic:
        tensors.add("position_embd.weight", shape.context, dim, scale=0.3)
    tensors.norm("token_embd_norm", dim)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, out in [("attn_qkv", 3 * dim)] if nomic else [(f"attn_{part}", dim) for part in "qkv"]:
            tensors.product(f"{block}.{name}", out, dim, bias=not nomic)
        tensors.product(f"{block}.attn_output", dim, dim, bias=not nomic)
        tensors.norm(f"{block}.attn_output_norm", dim)
        for name in ("ffn_up", "ffn_gate") if nomic else ("ffn_up",):
            tensors.product(f"{block}.{name}", shape.feed_forward, dim, bias=not nomic)
        tensors.product(f"{block}.ffn_down", dim, shape.feed_forward, bias=not nomic)
        tensors.norm(f"{block}.layer_output_norm", dim)


def _add_word_piece(writer: gguf.GGUFWriter) -> int:
    """Write MiniLM's tokenizer. Return the number of tokens."""
    add_vocabulary(writer, package_folder())
    return len(_word_pieces())


def _add_unigram(writer: gguf.GGUFWriter) -> int:
    """Write the tokenizer of an XLM-RoBERTa. Return the number of tokens."""
    start = "\N{LOWER ONE EIGHTH BLOCK}"
    spelled = (piece.removeprefix("##") if piece.startswith("##") else start + piece for piece in _word_pieces())
    capitals = (prefix + chr(letter) for letter in range(ord("A"), ord("Z") + 1) for prefix in ("", start))
    pieces = list(dict.fromkeys([start, *capitals, *(piece for piece in spelled if not piece.startswith(f"{start}["))]))
    unused = [f"[PAD{number}]" for number in range(_UNUSED)]
    tokens = [*_SPECIAL, *pieces, *unused, "<mask>"]
    # Frequent pieces come first. No two scores are equal, so that each text has one best reading.
    scores = [-4 - 10 * (number + 1) / len(pieces) for number in range(len(pieces))]
    control, unknown, normal = gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.NORMAL
    types = [control, control, control, unknown, *[normal] * len(pieces), *[gguf.TokenType.UNUSED] * _UNUSED, control]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(_SPECIAL) + scores + [-10_000.0] * _UNUSED + [0.0])
    writer.add_token_types(types)
    writer.add_token_type_count(1)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(character_map())
    for add, token in (
        ("bos", "<s>"),
        ("eos", "</s>"),
        ("unk", "<unk>"),
        ("sep", "</s>"),
        ("pad", "<pad>"),
        ("mask", "<mask>"),
    ):
        getattr(writer, f"add_{add}_token_id")(tokens.index(token))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    return len(tokens)


def character_map() -> bytes:
    """Return SentencePiece's own character map "nmt_nfkc", with which XLM-RoBERTa normalizes its texts."""
    spec = importlib.util.find_spec("sentencepiece")
    if spec is None or spec.origin is None:
        raise SystemExit("sentencepiece is not installed; run `make setup`")
    return (Path(spec.origin).parent / "package_data" / "nmt_nfkc.bin").read_bytes()


def _word_pieces() -> list[str]:
    return (package_folder() / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
