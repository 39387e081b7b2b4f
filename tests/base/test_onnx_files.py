"""The files that belong to a model in the format ONNX, and the refusal of what is no such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runed.errors import ModelFileError
from runed.onnx_files import files_of, is_onnx, model_folder


def export(path: Path, *, outside: str = "", in_a_branch: str = "") -> Path:
    """Write a model. Its weights are in the file `outside`, and those of a graph in the graph in `in_a_branch`, if named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    branch_weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "b")
    branches = [
        helper.make_graph([], name, [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)], [branch_weight])
        for name in ("then", "else")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [condition], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight])
    if outside:
        externalize(graph.initializer[0], path.parent, outside)
    if in_a_branch:
        for attribute in graph.node[0].attribute:
            externalize(attribute.g.initializer[0], path.parent, in_a_branch)
    onnx.save(helper.make_model(graph), path)
    return path


def externalize(tensor: TensorProto, folder: Path, name: str) -> None:
    """Move the bytes of a tensor into a file."""
    onnx.external_data_helper.set_external_data(tensor, location=name)
    if ".." not in name and not name.startswith("/"):
        (folder / name).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def names(path: Path) -> list[str]:
    folder = model_folder(path)
    return [file.relative_to(folder).as_posix() for file in files_of(path)]


def test_a_file_with_all_its_weights_needs_only_the_tokenizer(folder: Path) -> None:
    assert names(export(folder / "model.onnx")) == ["model.onnx", "tokenizer.json"]


def test_weights_in_other_files_belong_to_the_model(folder: Path) -> None:
    path = export(folder / "model.onnx", outside="model.onnx_data", in_a_branch="branch.bin")
    assert names(path) == ["model.onnx", "branch.bin", "model.onnx_data", "tokenizer.json"]


def test_the_folder_above_has_the_tokenizer_as_sentence_transformers_saves_it(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    for name in ("config.json", "1_Pooling/config.json", "unrelated.json"):
        (folder / name).write_text("{}")
    path = export(folder / "onnx" / "model.onnx", outside="model.onnx_data")
    expected = ["onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json", "config.json", "1_Pooling/config.json"]
    assert names(path) == expected
    (path.parent / "tokenizer.json").write_text("{}")
    assert names(path) == ["model.onnx", "model.onnx_data", "tokenizer.json"]


def test_without_a_tokenizer_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no tokenizer.json beside it; copy that of the model there"):
        files_of(export(tmp_path / "deep" / "folder" / "model.onnx"))


def test_missing_weights_are_named(folder: Path) -> None:
    path = export(folder / "model.onnx", outside="model.onnx_data")
    (folder / "model.onnx_data").unlink()
    with pytest.raises(
        ModelFileError, match=r"keeps weights in 'model.onnx_data', which is not beside it; copy that file, too"
    ):
        files_of(path)


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/passwd", "a/../../b"])
def test_weights_outside_of_the_folder_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="accepted are names in its own folder"):
        files_of(export(folder / "model.onnx", outside=name))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"GGUF\3\0\0\0" + bytes(64), id="gguf"),
        pytest.param(b"just a text file\n", id="text"),
        pytest.param(b"\x08\x08", id="no graph"),
        pytest.param(b"\x3a" + b"\xff" * 12, id="a number without an end"),
        pytest.param(b"\x3a\x7f\x00", id="cut short"),
        pytest.param(b"\x0b\x0b\x0b", id="an unknown type"),
    ],
)
def test_what_is_no_onnx_file_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        files_of(path)


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(folder: Path) -> None:
    path = export(folder / "model.onnx", outside="w.bin")
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            files = files_of(path)
        except ModelFileError:
            continue
        # The rest is the versions of operators, or whole fields.
        assert (folder / "w.bin") in files, length


def varint(number: int) -> bytes:
    """Return a number in the wire format of protobuf, where the library refuses to nest so deep."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def test_graphs_in_graphs_have_a_limit(folder: Path) -> None:
    content = b""
    for _ in range(40):
        for field in (6, 5, 1):  # a graph in an attribute in a node
            content = bytes([field << 3 | 2]) + varint(len(content)) + content
    path = folder / "model.onnx"
    path.write_bytes(b"\x3a" + varint(len(content)) + content)
    with pytest.raises(ModelFileError, match="its graphs are too deep"):
        files_of(path)


@pytest.mark.parametrize(("name", "expected"), [("m.onnx", True), ("M.ONNX", True), ("m.gguf", False), ("onnx", False)])
def test_the_name_tells_the_format(name: str, *, expected: bool) -> None:
    assert is_onnx(Path(name)) is expected


def test_a_file_that_is_missing_or_a_folder_is_an_error_of_one_sentence(folder: Path) -> None:
    (folder / "folder.onnx").mkdir()
    for name in ("missing.onnx", "folder.onnx"):
        with pytest.raises(ModelFileError, match=r"cannot be used: .*; export it again"):
            files_of(folder / name)
