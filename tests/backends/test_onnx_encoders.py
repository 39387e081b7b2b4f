"""Graphs of several architectures: their vectors are those of the reference implementation and of llama-server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from runed.backends.base import pack
from runed.backends.onnx import building
from runed.backends.onnx.graph_folder import GRAPH
from runed.backends.onnx.model_file import UnsupportedModelError
from runed.backends.onnx.worker import Model
from tests.backends.support import MakeBackend
from tests.support import Golden
from tools import encoders
from tools.engine import programs_folder

SHAPE = encoders.Shape(dim=256, layers=3, heads=8, feed_forward=512, context=512)
"""K-quants need rows of 256 values."""

SMALL = encoders.Shape(dim=32, layers=2, heads=2, feed_forward=32, context=64)
"""For tests in which no other program computes."""

TEXTS = (
    "runed",
    "Why did we cap retry backoff at five minutes?",
    "Naïve café, 日本語 and हिन्दी: 100 % of it.",
    " ".join(f"word{number}" for number in range(120)),
)

WriteEncoder = Callable[..., Path]


@pytest.fixture(scope="session")
def write_encoder(tmp_path_factory: pytest.TempPathFactory) -> WriteEncoder:
    """Write a random encoder, once for all tests."""
    written: dict[tuple[object, ...], Path] = {}

    def write(kind: encoders.Kind, pooling: str = "MEAN", shape: encoders.Shape = SHAPE) -> Path:
        if (kind, pooling, shape) not in written:
            path = tmp_path_factory.mktemp("encoder") / f"{kind}-{pooling}.gguf"
            encoders.write(path, kind, shape, pooling=pooling)
            written[kind, pooling, shape] = path
        return written[kind, pooling, shape]

    return write


def load(model: Path, folder: Path) -> Model:
    """Make the graph of a model, and load it."""
    building.build(model, folder)
    return Model(folder, threads=2)


async def both(
    model: Path, folder: Path, make_backend: MakeBackend, texts: Sequence[str] = TEXTS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors of ONNX Runtime and of llama-server for the same tokens."""
    graph = load(model, folder)
    ids = graph.tokenize(texts)
    backend = make_backend(model=model, ctx_size=512)
    theirs = [(await backend.embed([pack(each.tolist())])).vectors[0] for each in ids]
    return graph.embed(ids), np.array([np.frombuffer(vector, "<f4") for vector in theirs])


def quantize(source: Path, target: Path, type_: str) -> None:
    """Quantize a model with llama.cpp's own program."""
    subprocess.run([programs_folder() / "llama-quantize", source, target, type_], check=True, capture_output=True)


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.sum(one * other, axis=1)
    return result


def test_minilm_is_that_of_the_reference(minilm_graph: Path, minilm_golden: Golden) -> None:
    model = Model(minilm_graph, threads=2)
    ids = model.tokenize(minilm_golden.texts)
    assert [len(each) for each in ids] == minilm_golden.tokens
    assert minilm_golden.cosines(model.embed(ids)).min() >= 0.999999


@pytest.mark.parametrize("pooling", ["MEAN", "CLS"])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "nomic-bert"])
async def test_random_encoders_agree_with_llama_server(
    kind: encoders.Kind, pooling: str, write_encoder: WriteEncoder, make_backend: MakeBackend, tmp_path: Path
) -> None:
    ours, theirs = await both(write_encoder(kind, pooling), tmp_path / "graph", make_backend)
    assert cosines(ours, theirs).min() >= 0.9999


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "nomic-bert"])
async def test_longest_text_is_computed(
    kind: encoders.Kind, write_encoder: WriteEncoder, make_backend: MakeBackend, tmp_path: Path
) -> None:
    text = " ".join(["word"] * (SHAPE.context - 2))
    ours, theirs = await both(write_encoder(kind), tmp_path / "graph", make_backend, [text])
    assert cosines(ours, theirs).min() >= 0.9999


@pytest.mark.parametrize(("type_", "least"), [("Q8_0", 0.999), ("Q6_K", 0.999), ("Q4_K_M", 0.99), ("BF16", 0.9999)])
async def test_quantized_weights_are_read_as_they_are(
    type_: str, least: float, write_encoder: WriteEncoder, make_backend: MakeBackend, tmp_path: Path
) -> None:
    """llama-server rounds the activations, too, so that both differ by that."""
    path = tmp_path / "model.gguf"
    quantize(write_encoder("bert"), path, type_)
    ours, theirs = await both(path, tmp_path / "graph", make_backend)
    assert cosines(ours, theirs).min() >= least


def test_named_pooling_goes_before_that_of_the_file(write_encoder: WriteEncoder, tmp_path: Path) -> None:
    building.build(write_encoder("bert", shape=SMALL), tmp_path / "named", "cls")
    building.build(write_encoder("bert", "CLS", SMALL), tmp_path / "own")
    named, own = Model(tmp_path / "named", threads=1), Model(tmp_path / "own", threads=1)
    ids = named.tokenize(TEXTS[:3])
    assert np.array_equal(named.embed(ids), own.embed(ids))


def test_weights_are_not_in_the_graph(minilm_graph: Path) -> None:
    assert (minilm_graph / GRAPH).stat().st_size < 100_000


def rewrite(source: Path, target: Path, *, drop: str = "", add: str = "") -> Path:
    """Copy a model. Leave a tensor out, or add one."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data)
    if add:
        writer.add_tensor(add, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"drop": "blk.1.ffn_up.weight"}, "its file lacks the tensor blk.1.ffn_up.weight"),
        ({"add": "blk.0.attn_q_norm.weight"}, "has the tensor blk.0.attn_q_norm.weight, which is unknown here"),
    ],
)
def test_model_with_other_tensors_is_refused(
    changes: dict[str, str], told: str, write_encoder: WriteEncoder, tmp_path: Path
) -> None:
    changed = rewrite(write_encoder("bert", shape=SMALL), tmp_path / "model.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=told):
        building.build(changed, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize(
    ("kind", "metadata", "told"),
    [
        ("bert", {"bert.attention.head_count": 0}, "its 32 values do not divide into 0 heads"),
        ("bert", {"bert.block_count": "two"}, "its file lacks bert.block_count, or has nonsense there"),
        ("nomic-bert", {"nomic-bert.rope.scaling.type": "yarn"}, "its rotary positions are scaled"),
        ("nomic-bert", {"nomic-bert.rope.dimension_count": 4}, "its rotary positions are scaled, or turn a part"),
    ],
)
def test_model_of_other_sizes_is_refused(
    kind: encoders.Kind, metadata: dict[str, encoders.Value], told: str, tmp_path: Path
) -> None:
    encoders.write(tmp_path / "model.gguf", kind, SMALL, metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=told):
        building.build(tmp_path / "model.gguf", tmp_path / "graph")


def test_tensors_of_a_head_are_not_needed(write_encoder: WriteEncoder, tmp_path: Path) -> None:
    changed = rewrite(write_encoder("bert", shape=SMALL), tmp_path / "model.gguf", add="cls.weight")
    assert load(changed, tmp_path / "graph").graph.dim == SMALL.dim
