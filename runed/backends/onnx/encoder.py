"""Writes the graph of an encoder of BERT's family: token ids in, one vector of L2 norm 1 a text out.

It computes what the reference implementations compute: GELU by the error function, where llama.cpp takes an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from runed.backends.onnx.graph_writer import CONTRIB, GraphWriter
from runed.backends.onnx.model_file import ModelFile, UnsupportedModelError

IDS: Final = "input_ids"
MASK: Final = "attention_mask"
INPUTS: Final = (IDS, MASK)
"""Token ids, and 1 for each token and 0 for padding after the last one, both (texts, tokens) in int32."""

_HEAD = "cls."
"""Start of the names of tensors that only a reranker computes with."""

_MAX_TOKENS = 131_072
"""Most tokens of a text, so that no file asks for tables of any size."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Names of values that tell where the tokens are among the padding.

    All that looks at one token alone is computed of the rows of tokens, without padding, (rows, values). Only attention needs
    the texts apart, (texts, tokens, values).

    Attributes:
        places: Text and position of each row, (rows, 2).
        positions: The position of each row.
        numbers: The row of each token, (texts, tokens); for padding, any row.
        full: Whether there is no padding.
        shape: The shape of the values of all tokens if there is none.
    """

    places: str
    positions: str
    numbers: str
    full: str
    shape: str


class Encoder:
    """The graph of one model, on its way.

    Args:
        file: The model.
        graph: The graph to write to.

    Attributes:
        dim: The number of values of a vector.
        max_tokens: The most tokens of a text for which the model has positions.

    Raises:
        UnsupportedModelError: The model lacks something, or has something that this graph does not compute.
    """

    def __init__(self, file: ModelFile, graph: GraphWriter) -> None:
        self._file = file
        self._graph = graph
        self._rotary = file.architecture == "nomic-bert"
        self._heads = file.value("{arch}.attention.head_count", int)
        self._layers = file.value("{arch}.block_count", int)
        self._epsilon = file.value("{arch}.attention.layer_norm_epsilon", float)
        self.dim = file.value("{arch}.embedding_length", int)
        self.max_tokens = file.value("{arch}.context_length", int)
        if self._heads < 1 or self.dim % self._heads:
            raise UnsupportedModelError(f"its {self.dim} values do not divide into {self._heads} heads")
        if not self._rotary:
            self.max_tokens = min(self.max_tokens, file.shape("position_embd.weight")[0])
        self.max_tokens = min(self.max_tokens, _MAX_TOKENS)

    def write(self, pooling: str) -> str:
        """Write the nodes and weights. Return the name of the output.

        Args:
            pooling: "mean", "cls" or "last".

        Raises:
            OSError: A weight cannot be written.
            UnsupportedModelError: As the constructor.
        """
        rows = self._rows()
        states = self._embeddings(rows)
        turn = self._rotation() if self._rotary else ()
        for layer in range(self._layers):
            states = self._layer(f"blk.{layer}", states, rows, turn)
        if unknown := sorted(name for name in self._file.unread if not name.startswith(_HEAD)):
            raise UnsupportedModelError(f"its file has the tensor {unknown[0]}, which is unknown here")
        return self._graph.op("LpNormalization", self._pool(states, rows, pooling), axis=-1, p=2)

    def _rows(self) -> _Rows:
        graph = self._graph
        found = graph.op("NonZero", MASK)
        counted = graph.op("CumSum", graph.op("Reshape", MASK, graph.constant([-1])), graph.constant(0))
        numbers = graph.op("Sub", graph.op("Cast", counted, to=TensorProto.INT64), graph.constant(1))
        shape = graph.op("Shape", MASK)
        return _Rows(
            places=graph.op("Transpose", found, perm=[1, 0]),
            positions=graph.op("Gather", found, graph.constant(1), axis=0),
            numbers=graph.op("Reshape", numbers, shape),
            full=graph.op("Cast", graph.op("ReduceMin", MASK, keepdims=0), to=TensorProto.BOOL),
            shape=graph.op("Concat", shape, graph.constant([-1]), axis=0),
        )

    def _embeddings(self, rows: _Rows) -> str:
        """Add tokens, positions and the first of the token types, as llama.cpp does, and normalize."""
        graph = self._graph
        name = "token_embd.weight"
        vectors = graph.op("Gather", self._table(name), graph.op("GatherND", IDS, rows.places), axis=0)
        if self._file.is_half_precision(name):
            vectors = graph.op("Cast", vectors, to=TensorProto.FLOAT)
        types = self._file.tensor("token_types.weight")[:1] if self._file.has("token_types.weight") else np.zeros((1, self.dim))
        if self._rotary:
            vectors = graph.op("Add", vectors, graph.weight("token_type", types.astype(np.float32)))
            return self._norm("token_embd_norm", vectors)
        positions = self._file.tensor("position_embd.weight")[: self.max_tokens] + types
        table = graph.weight("positions", positions.astype(np.float32))
        return self._skip_norm("token_embd_norm", vectors, graph.op("Gather", table, rows.positions, axis=0))

    def _layer(self, name: str, states: str, rows: _Rows, turn: tuple[str, ...]) -> str:
        attended = self._attention(name, states, rows, turn)
        projected = self._product(f"{name}.attn_output.weight", attended)
        states = self._skip_norm(f"{name}.attn_output_norm", projected, states, bias=f"{name}.attn_output.bias")
        projected = self._product(f"{name}.ffn_down.weight", self._feed_forward(name, states))
        return self._skip_norm(f"{name}.layer_output_norm", projected, states, bias=f"{name}.ffn_down.bias")

    def _attention(self, name: str, states: str, rows: _Rows, turn: tuple[str, ...]) -> str:
        graph, file = self._graph, self._file
        fused = file.has(f"{name}.attn_qkv.weight")
        parts = [f"{name}.attn_qkv"] if fused else [f"{name}.attn_{part}" for part in "qkv"]
        weight = np.concatenate([file.tensor(f"{part}.weight").T for part in parts], axis=1)
        values = graph.op("MatMul", states, graph.weight(f"{name}.qkv.weight", weight))
        bias = ""
        if all(file.has(f"{part}.bias") for part in parts):
            bias = graph.weight(f"{name}.qkv.bias", np.concatenate([file.tensor(f"{part}.bias") for part in parts]))

        def attend(values: str, *mask: str) -> str:
            queries, keys, content = graph.ops("Split", values, outputs=3, axis=-1)
            if turn:
                queries, keys = (graph.op("RotaryEmbedding", part, *turn, domain=CONTRIB) for part in (queries, keys))
            return graph.op("MultiHeadAttention", queries, keys, content, bias, *mask, domain=CONTRIB, num_heads=self._heads)

        # Without a mask, no memory is needed for each pair of tokens: 190 MiB less for a text of 2,048 tokens and 12 heads.
        return graph.choose(
            rows.full,
            lambda: graph.op("Reshape", attend(graph.op("Reshape", values, rows.shape)), graph.constant([-1, self.dim])),
            lambda: graph.op("GatherND", attend(graph.op("Gather", values, rows.numbers, axis=0), MASK), rows.places),
        )

    def _feed_forward(self, name: str, states: str) -> str:
        graph = self._graph
        raised = self._product(f"{name}.ffn_up.weight", states)
        if self._rotary:
            gate = graph.op("QuickGelu", self._product(f"{name}.ffn_gate.weight", states), domain=CONTRIB, alpha=1.0)  # is SiLU
            return graph.op("Mul", gate, raised)
        return graph.op("BiasGelu", raised, self._vector(f"{name}.ffn_up.bias"), domain=CONTRIB)

    def _rotation(self) -> tuple[str, ...]:
        """Return the first position and the tables of the rotary position embedding."""
        scaling = self._file.value("{arch}.rope.scaling.type", str, "none")
        size = self.dim // self._heads
        if scaling != "none" or self._file.value("{arch}.rope.dimension_count", int, size) != size:
            raise UnsupportedModelError("its rotary positions are scaled, or turn a part of each head only")
        base = self._file.value("{arch}.rope.freq_base", float, 10_000.0)
        angles = np.arange(self.max_tokens)[:, np.newaxis] * base ** (-np.arange(0, size, 2) / size)
        tables = ((name, table(angles)) for name, table in (("cos", np.cos), ("sin", np.sin)))
        return self._graph.constant([0]), *(self._graph.weight(name, table.astype(np.float32)) for name, table in tables)

    def _pool(self, states: str, rows: _Rows, pooling: str) -> str:
        graph = self._graph
        if pooling == "mean":  # a sum is enough, since the vector is normalized
            mask = graph.op("Unsqueeze", graph.op("Cast", MASK, to=TensorProto.FLOAT), graph.constant([1]))
            states = graph.op("Gather", states, rows.numbers, axis=0)
            return graph.op("Squeeze", graph.op("MatMul", mask, states), graph.constant([1]))
        if pooling == "cls":
            return graph.op("Gather", states, graph.op("Gather", rows.numbers, graph.constant(0), axis=1), axis=0)
        if pooling == "last":
            tokens = graph.op("ReduceSum", graph.op("Cast", MASK, to=TensorProto.INT64), graph.constant([1]), keepdims=1)
            last = graph.op("GatherND", rows.numbers, graph.op("Sub", tokens, graph.constant([1])), batch_dims=1)
            return graph.op("Gather", states, last, axis=0)
        raise UnsupportedModelError(f"its pooling is {pooling!r}")

    def _product(self, name: str, states: str) -> str:
        return self._graph.op("MatMul", states, self._graph.weight(name, self._file.tensor(name).T))

    def _table(self, name: str) -> str:
        """Write a table from which rows are taken, in float16 if its values are those of float16."""
        dtype = np.float16 if self._file.is_half_precision(name) else np.float32
        parts: Iterator[NDArray[np.generic]] = (part.astype(dtype) for part in self._file.rows(name))
        return self._graph.weight_in_parts(name, self._file.shape(name), parts)

    def _vector(self, name: str) -> str:
        return self._graph.weight(name, self._file.tensor(name))

    def _norm(self, name: str, states: str) -> str:
        parts = (self._vector(f"{name}.{part}") for part in ("weight", "bias"))
        return self._graph.op("LayerNormalization", states, *parts, epsilon=self._epsilon, axis=-1)

    def _skip_norm(self, name: str, states: str, skip: str, *, bias: str = "") -> str:
        parts = [self._vector(f"{name}.{part}") for part in ("weight", "bias")]
        if bias and self._file.has(bias):
            parts.append(self._vector(bias))
        return self._graph.op("SkipLayerNormalization", states, skip, *parts, domain=CONTRIB, epsilon=self._epsilon)
