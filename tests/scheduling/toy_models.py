"""Writes tiny models with random weights for tokenizers that no other model of the tests has."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]

LETTERS = ["a", "b", "c", ".", "é"]

_DIM = 32


def write(path: Path, tokenizer: str) -> None:
    """Write a BERT with the vocabulary of a SentencePiece model: "t5" is its unigram kind (XLM-R), "llama" its byte-pair kind.

    Like Gemma's, the byte-pair kind has a token for each byte. The unigram kind reads a character that it lacks as `<unk>`.
    """
    pieces = [*SPECIAL, "▁", *LETTERS, *(f"▁{letter}" for letter in LETTERS)]
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.NORMAL] * (len(pieces) - len(SPECIAL))
    if tokenizer == "llama":
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [gguf.TokenType.BYTE] * 256
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("toy")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(256)
    writer.add_embedding_length(_DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_DIM)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_scores([-float(number) for number in range(len(pieces))])
    writer.add_token_type_count(1)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=True)
    writer.add_add_space_prefix(value=True)
    _add_weights(writer, len(pieces))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))

    add("token_embd.weight", vocabulary, _DIM)
    add("position_embd.weight", 256, _DIM)
    add("token_types.weight", 1, _DIM)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        add(f"{name}.weight", _DIM)
        add(f"{name}.bias", _DIM)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        add(f"blk.0.{name}.weight", _DIM, _DIM)
        add(f"blk.0.{name}.bias", _DIM)
