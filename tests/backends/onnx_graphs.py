"""Small ONNX graphs, and workers that serve them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import runed
from runed.backends.onnx.http import OnnxHTTP
from runed.lifecycle.listener import probe
from tests.support import http_over, wait_until

WORKER = Path(runed.__file__).parent / "backends" / "onnx" / "worker.py"

WORDS = [f"word{number}" for number in range(100)]

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

VOCABULARY = {token: number for number, token in enumerate([*_SPECIAL, *WORDS])}

CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]


def build_graph(
    folder: Path,
    *,
    pooling: str = "mean",
    dim: int = 16,
    layers: int = 0,
    max_tokens: int = 64,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
) -> Path:
    """Make a graph that answers an embedding of each token, after `layers` multiplications by a matrix.

    Args:
        folder: The folder to make.
        pooling: As in `graph.json`.
        dim: The number of values of a vector.
        layers: The number of matrices. With 8 of 1024 x 1024, a token takes about 0.2 ms.
        max_tokens: As in `graph.json`.
        inputs: The inputs of the graph. Only the first one matters.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    weights = {"embedding": random.standard_normal((len(VOCABULARY), dim), np.float32)}
    nodes = [helper.make_node("Gather", ["embedding", inputs[0]], ["states0"])]
    for layer in range(layers):
        weights[f"matrix{layer}"] = random.standard_normal((dim, dim), np.float32) / np.float32(np.sqrt(dim))
        nodes.append(helper.make_node("MatMul", [f"states{layer}", f"matrix{layer}"], [f"states{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info(f"states{layers}", TensorProto.FLOAT, ["n", "tokens", dim])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    write_tokenizer(folder / "tokenizer.json")
    describe(folder, pooling=pooling, dim=dim, max_tokens=max_tokens, output=f"states{layers}")
    return folder


def describe(folder: Path, *, pooling: str, dim: int, max_tokens: int, output: str) -> None:
    """Write `graph.json`."""
    description = {"version": 1, "model": "model.onnx", "dim": dim, "max_tokens": max_tokens, "pooling": pooling}
    description |= {"normalized": False, "output": output, "pad_id": 0}
    (folder / "graph.json").write_text(json.dumps(description))


def embeddings(folder: Path) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Return the weights of a graph by their names."""
    model = onnx.load(folder / "model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer whose tokens are `WORDS`."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    tokenizer.save(str(path))


def worker_argv(graph: Path, socket: Path, *, threads: int = 2) -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-P", str(WORKER), "--graph", str(graph), "--socket", str(socket), "--threads", str(threads)]


class Worker:
    """A worker that serves a graph; a context manager that waits until it has loaded.

    Args:
        graph: The folder of the graph.
        home: A folder with a short path.
        threads: The threads that compute.
    """

    def __init__(self, graph: Path, home: Path, *, threads: int = 2) -> None:
        self.socket = home / "w.sock"
        self._log = home / "worker.log"
        argv = worker_argv(graph, self.socket, threads=threads)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        """Its output so far."""
        return self._log.read_text()

    def connect(self, *, dim: int = 16, max_tokens: int = 64) -> OnnxHTTP:
        """Return a new client, which the caller closes."""
        return OnnxHTTP(self.socket, dim=dim, max_tokens=max_tokens)

    def wait(self) -> None:
        """Wait until it has loaded."""
        wait_until(lambda: probe(self.socket) or self.process.poll() is not None, what="the socket of the worker")
        assert self.process.poll() is None, self.output
        with http_over(self.socket) as http:
            assert http.get("/health").status_code == 200

    def __enter__(self) -> Self:
        try:
            self.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
