"""Writes a small cross-encoder as a GGUF, without a download: the encoder of all-MiniLM-L6-v2 with a head of random weights.

Its scores mean nothing, but each depends on all words of a query and a document, and transformers gives the same ones. Tests of
reranking use it. The same input always makes the same bytes.

Two things differ from a usual BERT cross-encoder. llama.cpp gives all tokens the first of two types, so that both types have
the same values here. And the file asks for a separator after the document, too, which llama.cpp leaves out by itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from tools.minilm import ROOT, add_sizes, add_vocabulary, package_folder, tensor_names

OUTPUT = ROOT / "build" / "minilm-reranker.f32.gguf"

NAME = "minilm-reranker-random"

_HEAD_DEVIATION = 2.5
"""Standard deviation of the weights of the head. The scores lie between about -8 and 8 then, as those of a trained one."""

Tensors = dict[str, NDArray[np.float32]]


def weights(folder: Path) -> Tensors:
    """Return the weights of the cross-encoder in float32, by their names in transformers' `BertForSequenceClassification`.

    Args:
        folder: The folder of all-MiniLM-L6-v2.
    """
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        encoder = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 # it is no dict
    del encoder["embeddings.position_ids"]
    types = "embeddings.token_type_embeddings.weight"
    encoder[types] = np.tile(encoder[types][:1], (2, 1))
    dim = len(encoder["pooler.dense.bias"])
    random = np.random.default_rng(0)
    head = random.standard_normal((1, dim), dtype=np.float32) * np.float32(_HEAD_DEVIATION)
    tensors = {f"bert.{name}": tensor for name, tensor in encoder.items()}
    return tensors | {"classifier.weight": head, "classifier.bias": np.zeros(1, np.float32)}


def write(folder: Path, output: Path) -> None:
    """Write the GGUF in one step: a reader sees no file or a complete one.

    Args:
        folder: The folder of all-MiniLM-L6-v2.
        output: The file to write. Its directory is made if it is missing.
    """
    config = json.loads((folder / "config.json").read_text())
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    writer = gguf.GGUFWriter(partial, "bert")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_sizes(writer, config)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    add_vocabulary(writer, folder)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    tensors = weights(folder)
    names = {f"bert.{name}": gguf_name for name, gguf_name in tensor_names(config["num_hidden_layers"]).items()}
    head = {"bert.pooler.dense": "cls", "classifier": "cls.output"}
    names |= {f"{name}.{part}": f"{gguf_name}.{part}" for name, gguf_name in head.items() for part in ("weight", "bias")}
    for name, gguf_name in names.items():
        writer.add_tensor(gguf_name, tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(output)


def export(folder: Path, output: Path) -> None:
    """Write the same cross-encoder as a folder for transformers' `from_pretrained`.

    Args:
        folder: The folder of all-MiniLM-L6-v2.
        output: The folder to write. It is made if it is missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    (output / "config.json").write_text(json.dumps(config))
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(folder / name, output)
    save_file(weights(folder), output / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Write the GGUF and, if asked, the folder for transformers."""
    parser = argparse.ArgumentParser(description="Write a small cross-encoder with a random head as a GGUF.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file to write (default: %(default)s)")
    parser.add_argument("--transformers", type=Path, metavar="FOLDER", help="also write the model for transformers")
    arguments = parser.parse_args()
    write(package_folder(), arguments.output)
    print(f"Wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    if arguments.transformers:
        export(package_folder(), arguments.transformers)


if __name__ == "__main__":
    main()
