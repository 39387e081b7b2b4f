"""The folder of a graph: made whole, once, and made anew if it is not complete."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from runed.backends.onnx import building, graph_folder
from runed.backends.onnx.graph_folder import (
    GRAPH,
    RECORD,
    TOKENIZER,
    WEIGHTS,
    is_complete,
    read_graph,
    remove_graphs,
    remove_outdated,
)
from runed.paths import Paths
from tests.backends.support import build_gguf
from tools import encoders, qwen3

BARE: dict[str, object] = {
    "general.architecture": "bert",
    "bert.embedding_length": 64,
    "bert.context_length": 512,
    "bert.pooling_type": 1,
    "tokenizer.ggml.tokens": ["a"],
}
"""Metadata of a BERT that lacks most of it."""

SHA256 = "0123456789abcdef" * 4


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of the smallest size."""
    path = tmp_path_factory.mktemp("encoder") / "bert.gguf"
    encoders.write(path, "bert", encoders.Shape(dim=32, layers=1, heads=2, feed_forward=32, context=64))
    return path


@pytest.fixture
def folder(paths: Paths) -> Path:
    return graph_folder.graph_folder(paths, SHA256)


def build(model: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "runed.backends.onnx.building", str(model), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_folder_is_made_whole(encoder: Path, folder: Path) -> None:
    done = build(encoder, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {RECORD, GRAPH, WEIGHTS, TOKENIZER}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    found = read_graph(folder)
    assert found is not None
    assert (found.architecture, found.dim, found.max_tokens, found.pooling, found.normalized) == ("bert", 32, 64, "none", True)
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_complete_folder_stays(encoder: Path, folder: Path) -> None:
    building.build(encoder, folder)
    before = (folder / GRAPH).stat().st_ino
    assert building.main([str(encoder), str(folder)]) == 0
    assert (folder / GRAPH).stat().st_ino == before


@pytest.mark.parametrize("name", [RECORD, GRAPH, WEIGHTS, TOKENIZER])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_folder_is_made_anew(encoder: Path, folder: Path, name: str, damage: str) -> None:
    building.build(encoder, folder)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "cut":
        (folder / name).write_bytes(whole[:-1])
    assert not is_complete(folder)
    building.build(encoder, folder)
    assert is_complete(folder)
    assert (folder / name).read_bytes() == whole


def test_what_a_killed_builder_left_is_removed(encoder: Path, folder: Path) -> None:
    leftover = folder.with_name(f".{folder.name}.partial")
    leftover.mkdir(parents=True)
    (leftover / WEIGHTS).write_bytes(bytes(100))
    building.build(encoder, folder)
    assert is_complete(folder)
    assert not leftover.exists()


def test_two_builders_make_one_folder(encoder: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "runed.backends.onnx.building", str(encoder), str(folder)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert is_complete(folder)


def test_same_model_makes_the_same_bytes(encoder: Path, folder: Path, tmp_path: Path) -> None:
    building.build(encoder, folder)
    building.build(encoder, tmp_path / "again")
    for name in (RECORD, GRAPH, WEIGHTS, TOKENIZER):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_folder_of_another_builder_is_not_used_and_goes(encoder: Path, folder: Path, paths: Paths) -> None:
    building.build(encoder, folder)
    info = read_graph(folder)
    assert info is not None
    old = folder.with_name(f"{SHA256[:16]}-0")
    old_with_pooling = folder.with_name(f"{SHA256[:16]}-0-cls")
    other = folder.with_name(f"{'f' * 16}-0")
    for each in (old, old_with_pooling, other):
        shutil.copytree(folder, each)
        (each / RECORD).write_bytes(msgspec.json.encode(msgspec.structs.replace(info, builder=0)))
        assert not is_complete(each)
    assert remove_outdated(folder) > 0
    assert {path.name for path in folder.parent.iterdir() if path.is_dir()} == {folder.name, other.name}
    assert remove_graphs(paths, SHA256) > 0
    assert [path.name for path in folder.parent.iterdir()] == [other.name]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: qwen3.write(path, qwen3.Shape(dim=32, layers=1)), "its architecture is 'qwen3'"),
        (lambda path: path.write_bytes(b"no model"), "it is not a GGUF file"),
        (lambda path: path.write_bytes(build_gguf(BARE)), "its file lacks bert.attention.head_count"),
    ],
    ids=["decoder", "no GGUF", "no sizes"],
)
def test_model_that_cannot_be_served_is_refused(make: object, told: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert callable(make)
    make(path)
    done = build(path, folder)
    assert done.returncode == building.UNSUPPORTED
    assert told in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]


def test_missing_file_is_told(folder: Path, tmp_path: Path) -> None:
    done = build(tmp_path / "missing.gguf", folder)
    assert done.returncode == building.UNSUPPORTED
    assert "cannot be read: No such file or directory" in done.stderr


def test_trouble_of_the_machine_is_told(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = build(encoder, tmp_path / "file" / "folder")
    assert done.returncode == 1
    assert f"{tmp_path / 'file'}: File exists" in done.stderr
