"""A small ONNX file of a user's own, with what belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from tests.backends.onnx_graphs import build_graph

TOKENS = 64
"""Most tokens of a text of the model."""


def write_own_model(folder: Path, *, outside: str = "", pooling: str = "") -> Path:
    """Write a model of 16 values and a hundred words, as an exporter does. Return its `model.onnx`.

    Args:
        folder: The folder to make.
        outside: The file beside it that has its weights, or "" for none.
        pooling: What a `1_Pooling/config.json` tells, such as "mean"; "" for no such file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = build_graph(folder, max_tokens=TOKENS) / "model.onnx"
    (folder / "graph.json").unlink()
    config = {"model_type": "bert", "max_position_embeddings": TOKENS, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    model = onnx.load(path)
    model.graph.output[0].name = "last_hidden_state"
    model.graph.node[-1].output[0] = "last_hidden_state"
    if outside:
        convert_model_to_external_data(model, location=outside, size_threshold=0)
    onnx.save(model, path)
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}_tokens": True}))
    return path
