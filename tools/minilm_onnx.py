"""Exports all-MiniLM-L6-v2 to an ONNX file, as users of ONNX Runtime have it: optimized, with weights in float32.

The benchmarks give it to other libraries. Its inputs are `input_ids`, `attention_mask` and `token_type_ids` in int64, and its
output is `last_hidden_state`, as in exports by Hugging Face's tools. Its operators are those into which ONNX Runtime's own
optimizer for BERT turns such an export.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from safetensors import safe_open

_CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_OTHER_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


class _Exporter:
    """Collects the nodes and weights of a graph."""

    def __init__(self, weights: dict[str, NDArray[np.float32]], heads: int, epsilon: float) -> None:
        self.nodes: list[NodeProto] = []
        self.used: dict[str, NDArray[np.float32]] = {}
        self._weights = weights
        self._heads = heads
        self._epsilon = epsilon

    def node(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        domain: str = _CONTRIB,
        **attributes: Any,  # noqa: ANN401 # each operator has its own
    ) -> str:
        """Add a node, and return the name of its output."""
        outputs = [output, ""] if operator == "EmbedLayerNormalization" else [output]
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return output

    def weight(self, name: str) -> str:
        """Add a weight as it is."""
        self.used[name] = self._weights[name]
        return name

    def product(self, states: str, layer: str, output: str) -> str:
        """Add the product of some states and the transposed matrix of a linear layer."""
        self.used[layer] = np.ascontiguousarray(self._weights[f"{layer}.weight"].T)
        return self.node("MatMul", [states, layer], output, domain="")

    def norm(self, states: str, skipped: str, *, linear: str, norm: str, output: str) -> str:
        """Add the norm of the sum of some states, the bias of the layer that they come from, and the states before it."""
        weights = [self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias"), self.weight(f"{linear}.bias")]
        return self.node("SkipLayerNormalization", [states, skipped, *weights], output, epsilon=self._epsilon)

    def embed(self) -> str:
        """Add the embeddings."""
        inputs = [
            self.node("Cast", [name], f"{name}32", domain="", to=TensorProto.INT32) for name in ("input_ids", "token_type_ids")
        ]
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
        weights = [self.weight(f"embeddings.{name}.weight") for name in names]
        inputs += [*weights, self.weight("embeddings.LayerNorm.bias")]
        return self.node("EmbedLayerNormalization", inputs, "embedded", epsilon=self._epsilon)

    def layer(self, number: int, states: str, output: str) -> str:
        """Add a layer of the transformer."""
        prefix = f"encoder.layer.{number}"
        parts = [f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")]
        packed = {
            f"{prefix}.qkv": np.concatenate([self._weights[f"{part}.weight"].T for part in parts], axis=1),
            f"{prefix}.qkv.bias": np.concatenate([self._weights[f"{part}.bias"] for part in parts]),
        }
        self.used |= packed
        attended = self.node("Attention", [states, *packed, "mask"], f"{prefix}.attended", num_heads=self._heads)
        linear = f"{prefix}.attention.output.dense"
        mixed = self.product(attended, linear, f"{prefix}.mixed")
        normed = self.norm(mixed, states, linear=linear, norm=f"{prefix}.attention.output.LayerNorm", output=f"{prefix}.normed")
        wide = self.product(normed, f"{prefix}.intermediate.dense", f"{prefix}.wide")
        active = self.node("BiasGelu", [wide, self.weight(f"{prefix}.intermediate.dense.bias")], f"{prefix}.active")
        narrow = self.product(active, f"{prefix}.output.dense", f"{prefix}.narrow")
        return self.norm(narrow, normed, linear=f"{prefix}.output.dense", norm=f"{prefix}.output.LayerNorm", output=output)


def export(folder: Path, output: Path) -> None:
    """Write `model.onnx`, and the files beside it that libraries read.

    Args:
        folder: The folder with `config.json`, `model.safetensors` and the tokenizer.
        output: The folder to write to.
    """
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        weights = {name: file.get_tensor(name) for name in file.keys() if name != "embeddings.position_ids"}  # noqa: SIM118 # no dict
    exporter = _Exporter(weights, config["num_attention_heads"], config["layer_norm_eps"])
    exporter.node("Cast", ["attention_mask"], "mask", domain="", to=TensorProto.INT32)
    states, layers = exporter.embed(), config["num_hidden_layers"]
    for number in range(layers):
        states = exporter.layer(number, states, "last_hidden_state" if number == layers - 1 else f"states{number}")
    graph = helper.make_graph(
        exporter.nodes,
        "all-MiniLM-L6-v2",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "tokens"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [helper.make_tensor_value_info(states, TensorProto.FLOAT, ["n", "tokens", config["hidden_size"]])],
        [numpy_helper.from_array(values, name) for name, values in exporter.used.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), output / "model.onnx")
    for name in _OTHER_FILES:
        shutil.copy(folder / name, output)
