"""Writes a Qwen3 model with random weights, without a download: the real architecture in any size, to embed or to rerank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

TOKENIZER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tiny-qwen3.f32.gguf"
"""The model that the tokenizer is copied from: 320 tokens, byte-level."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model. K-quants need rows of a multiple of 256 values.

    Attributes:
        dim: The number of values of a vector.
        layers: The number of blocks.
        heads: The number of attention heads.
        kv_heads: The number of key and value heads, a divisor of `heads`.
        head_dim: The number of values of a head.
        feed_forward: The number of values between the two halves of a block's feed-forward network.
        context: The longest text, in tokens.
        vocabulary: The number of tokens. Tokens beyond the tokenizer's own occur in no text; 0 means that there are none. Every
            token of the vocabulary costs time: for embeddings, too, llama.cpp multiplies the values of each token of a text
            with the whole vocabulary. Measured in the shape of Qwen3-Embedding-0.6B, this is about 35 % more work.
    """

    dim: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    feed_forward: int = 768
    context: int = 2048
    vocabulary: int = 0


QWEN3_0_6B = Shape(
    dim=1024, layers=28, heads=16, kv_heads=8, head_dim=128, feed_forward=3072, context=32_768, vocabulary=151_936
)
"""The sizes of Qwen3-Embedding-0.6B; 1.2 GB in f16."""


RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What Qwen3-Reranker reads of a pair, as llama.cpp's converter writes it into a GGUF."""

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
"""Tokens of the template, which are special in this tokenizer."""

ANSWERS = ("yes", "no")
"""The tokens whose rows of the vocabulary are the head of a reranker."""


def write(path: Path, shape: Shape, *, seed: int = 0, single: bool = False, rerank: bool = False) -> None:
    """Write a model in f16 or f32. The same arguments make the same bytes.

    Args:
        path: The GGUF to write; its directory must exist.
        shape: The sizes.
        seed: The seed of the random weights.
        single: Whether the weights are f32, instead of f16.
        rerank: Whether the model reranks, instead of embedding.
    """
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("qwen3-embedding-random")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_pooling_type(gguf.PoolingType.RANK if rerank else gguf.PoolingType.LAST)
    if rerank:
        writer.add_classifier_output_labels(ANSWERS)
        writer.add_string("tokenizer.chat_template.rerank", RERANK_TEMPLATE)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if single else gguf.LlamaFileType.MOSTLY_F16)
    tokens = _copy_tokenizer(writer, shape.vocabulary, (*SPECIAL_TOKENS, *ANSWERS) if rerank else ())

    random = np.random.default_rng(seed)

    def add(name: str, *size: int) -> NDArray[Any]:
        # With this scale, the values keep their size from layer to layer, like those of a trained model.
        scaled = random.standard_normal(size, dtype=np.float32) / np.sqrt(size[-1])
        weights: NDArray[Any] = scaled.astype(np.float32 if single else np.float16)
        writer.add_tensor(f"{name}.weight", weights)
        return weights

    def add_norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))

    vocabulary = add("token_embd", len(tokens), shape.dim)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm", shape.dim)
        add(f"{block}.attn_q", shape.heads * shape.head_dim, shape.dim)
        add(f"{block}.attn_k", shape.kv_heads * shape.head_dim, shape.dim)
        add(f"{block}.attn_v", shape.kv_heads * shape.head_dim, shape.dim)
        add(f"{block}.attn_output", shape.dim, shape.heads * shape.head_dim)
        add_norm(f"{block}.attn_q_norm", shape.head_dim)
        add_norm(f"{block}.attn_k_norm", shape.head_dim)
        add_norm(f"{block}.ffn_norm", shape.dim)
        add(f"{block}.ffn_gate", shape.feed_forward, shape.dim)
        add(f"{block}.ffn_up", shape.feed_forward, shape.dim)
        add(f"{block}.ffn_down", shape.dim, shape.feed_forward)
    add_norm("output_norm", shape.dim)
    if rerank:
        writer.add_tensor("cls.output.weight", vocabulary[[tokens.index(answer) for answer in ANSWERS]])

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(writer: gguf.GGUFWriter, size: int, further: Sequence[str]) -> list[str]:
    """Copy the tokenizer, and return its tokens.

    Args:
        writer: Takes the tokenizer.
        size: The number of tokens to fill it up to.
        further: Tokens in place of unused ones.
    """
    fields = {name: field.contents() for name, field in gguf.GGUFReader(TOKENIZER).fields.items()}
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    first = types.index(gguf.TokenType.UNUSED)
    for number, token in enumerate(further, first):
        tokens[number] = token
        types[number] = gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL
    fillers = [f"<|unused_{number}|>" for number in range(size - len(tokens))]
    writer.add_token_list(tokens + fillers)
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * len(fillers))
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"])
    writer.add_pad_token_id(fields["tokenizer.ggml.padding_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    return [*tokens, *fillers]
