"""A user's own ONNX file, in a folder as sentence-transformers exports it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runed.backends.onnx import building
from runed.backends.onnx.graph_folder import GRAPH, TOKENIZER, WEIGHTS, GraphInfo, read_graph
from runed.backends.onnx.model_file import UnsupportedModelError
from runed.backends.onnx.worker import Model
from tests.onnx_files import write_own_model
from tests.support import Golden
from tools import encoders
from tools.minilm import package_folder

Change = Callable[[Path], Any]


@pytest.fixture
def exported(minilm_graph: Path, tmp_path: Path) -> Path:
    """The folder of MiniLM as it is exported: a graph that takes int64 and returns the values of each token."""
    root = tmp_path / "MiniLM"
    for name in ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"):
        root.mkdir(exist_ok=True)
        shutil.copy(package_folder() / name, root)
    shutil.copytree(package_folder() / "1_Pooling", root / "1_Pooling")
    (root / "onnx").mkdir()
    (root / "onnx" / WEIGHTS).hardlink_to(minilm_graph / WEIGHTS)
    export(minilm_graph / GRAPH, root / "onnx" / "model.onnx")
    return root


def export(source: Path, target: Path, output: str = "last_hidden_state", *, dim: int = 384) -> None:
    """Turn a graph of ours into one as others export it."""
    model = onnx.load(str(source), load_external_data=False)
    nodes = list(model.graph.node)
    last = max(number for number, node in enumerate(nodes) if node.op_type == "Gather")
    states = nodes[last].output[0]
    pooled = model.graph.output[0].name
    casts = []
    for value in list(model.graph.input):
        value.type.tensor_type.elem_type = TensorProto.INT64
        casts.append(helper.make_node("Cast", [value.name], [f"{value.name}_32"], to=TensorProto.INT32))
        for node in _with_branches(nodes):
            node.input[:] = [f"{name}_32" if name == value.name else name for name in node.input]
    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["texts", "tokens"]))
    whole = output == "sentence_embedding"
    twice = helper.make_node("Add", [pooled, pooled] if whole else [states, states], [output])  # not of unit norm
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend([*casts, *nodes, twice])
    shape: list[str | int | None] = ["texts", dim] if whole else ["texts", "tokens", dim]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    onnx.save(model, str(target))


def _with_branches(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _with_branches(attribute.g.node)


def describe(root: Path, folder: Path, pooling: str = "", *, model: str = "onnx/model.onnx") -> GraphInfo:
    """Make the folder, and return its record."""
    building.build(root / model, folder, pooling)
    found = read_graph(folder)
    assert found is not None
    return found


def test_exported_folder_is_served(exported: Path, tmp_path: Path, minilm_golden: Golden) -> None:
    folder = tmp_path / "graph"
    found = describe(exported, folder)
    assert found == GraphInfo(
        architecture="bert",
        dim=384,
        max_tokens=512,
        pooling="mean",
        normalized=False,
        inputs=["input_ids", "attention_mask", "token_type_ids"],
        output="last_hidden_state",
        pad_id=0,
        unknown_token=100,
        special_tokens=[(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")],
        name="MiniLM-L6-H384-uncased",
        model=str(exported / "onnx" / "model.onnx"),
        files={TOKENIZER: (folder / TOKENIZER).stat().st_size},
    )
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    model = Model(folder, threads=2)
    ids = model.tokenize(minilm_golden.texts)
    assert [len(each) for each in ids] == minilm_golden.tokens
    assert minilm_golden.cosines(model.embed(ids)).min() >= 0.99999


def test_file_beside_its_tokenizer_is_served(exported: Path, tmp_path: Path) -> None:
    for path in (exported / "onnx").iterdir():
        path.rename(exported / path.name)
    assert describe(exported, tmp_path / "graph", model="model.onnx").model == str(exported / "model.onnx")


def test_weights_of_a_linked_file_are_those_beside_the_link(tmp_path: Path) -> None:
    """Hugging Face's cache keeps each file under its hash, and has links with the names. The model's hash follows the links."""
    files, root = tmp_path / "blobs", tmp_path / "snapshot"
    write_own_model(files, outside="weights.bin", pooling="mean")
    shutil.copy(files / "weights.bin", files / "other.bin")
    np.negative(np.fromfile(files / "weights.bin", np.float32)).tofile(files / "weights.bin")
    for name in ("model.onnx", "tokenizer.json", "config.json", "1_Pooling/config.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(files / name)
    (root / "weights.bin").symlink_to(files / "other.bin")
    vectors = []
    for model in (root, files):
        describe(model, tmp_path / f"graph-of-{model.name}", model="model.onnx")
        vectors.append(Model(tmp_path / f"graph-of-{model.name}", threads=1).embed([np.arange(3, dtype=np.int32)]))
    assert np.allclose(vectors[0], -vectors[1])


def test_output_of_whole_texts_is_taken_if_nothing_tells_the_pooling(
    exported: Path, minilm_graph: Path, tmp_path: Path, minilm_golden: Golden
) -> None:
    export(minilm_graph / GRAPH, exported / "onnx" / "model.onnx", "sentence_embedding")
    shutil.rmtree(exported / "1_Pooling")
    found = describe(exported, tmp_path / "graph")
    assert (found.output, found.pooling, found.dim) == ("sentence_embedding", "none", 384)
    model = Model(tmp_path / "graph", threads=2)
    vectors = model.embed(model.tokenize(minilm_golden.texts))
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert minilm_golden.cosines(vectors).min() >= 0.99999


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_that_of_the_folder(exported: Path, tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    (exported / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert describe(exported, tmp_path / "graph").pooling == pooling


def test_named_pooling_goes_before_that_of_the_folder(exported: Path, tmp_path: Path) -> None:
    assert describe(exported, tmp_path / "graph", "cls").pooling == "cls"


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_in_a_graph_is_that_of_the_worker(tmp_path: Path, minilm_golden: Golden, pooling: str) -> None:
    shape = encoders.Shape(dim=64, layers=1, heads=2, feed_forward=64)
    for name in ("mean", pooling):
        encoders.write(tmp_path / f"{name}.gguf", "bert", shape, pooling=name.upper())
        building.build(tmp_path / f"{name}.gguf", tmp_path / name)
    (tmp_path / "mean" / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    export(tmp_path / "mean" / GRAPH, tmp_path / "mean" / "own.onnx", dim=64)
    describe(tmp_path / "mean", tmp_path / "own", pooling, model="own.onnx")
    whole, own = Model(tmp_path / pooling, threads=2), Model(tmp_path / "own", threads=2)
    ids = whole.tokenize(minilm_golden.texts)
    assert (np.sum(whole.embed(ids) * own.embed(ids), axis=1)).min() >= 0.999999


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, 512),
        ({"max_position_embeddings": 128, "model_type": "bert"}, 128),
        ({"model_type": "bert"}, 256),
    ],
)
def test_longest_text_is_told_by_positions_or_the_tokenizer(
    exported: Path, tmp_path: Path, config: dict[str, Any], tokens: int
) -> None:
    (exported / "config.json").write_text(json.dumps(config))
    assert describe(exported, tmp_path / "graph").max_tokens == tokens


def _set(name: str, **values: object) -> Change:
    return lambda root: (root / name).write_text(json.dumps(values))


def _add_module(root: Path) -> None:
    modules = json.loads((root / "modules.json").read_text())
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (root / "modules.json").write_text(json.dumps(modules))


def _rename_input(root: Path) -> None:
    path = root / "onnx" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[-1].name = "pixels"
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda root: (root / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be used"),
        (lambda root: (root / "onnx" / "model.onnx").write_bytes(b"no graph"), "cannot be loaded"),
        (lambda root: (root / "onnx" / WEIGHTS).unlink(), "cannot be loaded"),
        (_rename_input, "its inputs are attention_mask, input_ids, pixels"),
        (lambda root: shutil.rmtree(root / "1_Pooling"), "nothing beside it tells how to pool its tokens"),
        (_set("1_Pooling/config.json", pooling_mode_max_tokens=True), "it pools by pooling_mode_max_tokens"),
        (
            _set("1_Pooling/config.json", pooling_mode_mean_tokens=True, pooling_mode_cls_token=True),
            "it pools by pooling_mode_cls_token and pooling_mode_mean_tokens",
        ),
        (_add_module, "the module Dense"),
    ],
)
def test_folder_that_cannot_be_served_is_refused(
    exported: Path, tmp_path: Path, change: Change, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(exported)
    model = exported / "onnx" / "model.onnx"
    assert building.main([str(model), str(tmp_path / "graph")]) == building.UNSUPPORTED
    said = capfd.readouterr().err
    assert told in said
    assert str(model) in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "graph").exists()


def test_folder_is_incomplete_once_the_own_file_is_gone(exported: Path, tmp_path: Path) -> None:
    describe(exported, tmp_path / "graph")
    (exported / "onnx" / "model.onnx").unlink()
    assert read_graph(tmp_path / "graph") is None


@pytest.mark.parametrize("kind", ["float16", "int64"])
def test_output_of_another_type_is_refused_with_the_one_that_is_needed(tmp_path: Path, kind: str) -> None:
    path = write_own_model(tmp_path / "own", pooling="mean")
    model = onnx.load(path)
    [output] = model.graph.output
    model.graph.node[-1].output[0] = "values"
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    model.graph.node.append(helper.make_node("Cast", ["values"], [output.name], to=type_))
    output.type.tensor_type.elem_type = type_
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match=f"has the type {kind} and 3 dimensions; export it with float32 and 3$"):
        building.build(path, tmp_path / "graph")
