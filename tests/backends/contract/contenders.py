"""The engines for which the tests of this folder hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.timings import Timings
from runed.backends.llama.backend import LlamaBackend
from runed.backends.onnx.backend import OnnxBackend
from runed.backends.onnx.command import WORKER
from runed.backends.onnx.graph_folder import GRAPH, RECORD, GraphInfo, graph_folder
from runed.paths import Paths
from tests.backends.support import QUICK, TENSORS, FakeEngine, build_gguf

MakeEngine = Callable[..., EngineBackend]

SHA256 = "ab" * 32

BERT: dict[str, Any] = {
    "general.architecture": "bert",
    "general.name": "small",
    "bert.embedding_length": 64,
    "bert.context_length": 512,
    "bert.pooling_type": 1,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "general.file_type": 0,
}
"""Metadata of a model that a fake serves."""


class Contender(Protocol):
    """An engine, real or fake, and how a test makes a backend of it."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def told(self) -> Mapping[str, str]:
        """A part of the error for each action of a fake whose answer is told in the words of one engine."""
        ...

    @property
    def doubt(self) -> str:
        """A part of the error of a program of the user's own that fails to start; "" where a user cannot choose one."""
        ...

    @property
    def word(self) -> str:
        """A text of one token, besides special ones."""
        ...

    def fake(self, directory: Path) -> FakeEngine:
        """Make a fake in a new directory."""
        ...

    def log(self, paths: Paths) -> Path:
        """Return the log of its output."""
        ...

    def backend(
        self,
        program: Path | None = None,
        model: Path | None = None,
        *,
        paths: Paths,
        ctx_size: int = 256,
        timings: Timings = QUICK,
        holds_home: Callable[[], bool] = lambda: True,
    ) -> EngineBackend:
        """Make a backend of the real engine, or of `program`, in a home."""
        ...

    def copy_of_model(self, path: Path) -> Path:
        """Write a model that a fake serves."""
        ...

    def parts(self, paths: Paths) -> list[Path]:
        """Return the model, and the program if a user can choose one, and provide in a home what else is needed."""
        ...


class LlamaContender:
    """`llama-server`, which serves a tiny Qwen3."""

    name = "llama-server"
    told: Mapping[str, str] = {
        "dimension": "252 bytes",
        "too-few": "0 vectors to 1 texts",
        "count": "not of the expected form",
        "garbage": "not of the expected form",
    }
    doubt = "correct RUNED_LLAMA_SERVER"
    word = "z"

    def __init__(self, llama_server: Path, tiny_qwen3: Path) -> None:
        self._llama_server = llama_server
        self._model = tiny_qwen3

    def fake(self, directory: Path) -> FakeEngine:
        return FakeEngine(directory)

    def log(self, paths: Paths) -> Path:
        return paths.engine_log

    def backend(
        self,
        program: Path | None = None,
        model: Path | None = None,
        *,
        paths: Paths,
        ctx_size: int = 256,
        timings: Timings = QUICK,
        holds_home: Callable[[], bool] = lambda: True,
    ) -> EngineBackend:
        return LlamaBackend(
            executable=program or self._llama_server,
            model=model or self._model,
            model_sha256=SHA256,
            paths=paths,
            ctx_size=ctx_size,
            timings=timings,
            holds_home=holds_home,
        )

    def copy_of_model(self, path: Path) -> Path:
        return Path(shutil.copyfile(self._model, path))

    def parts(self, paths: Paths) -> list[Path]:  # as the protocol says
        return [self._model, self._llama_server]


class OnnxContender:
    """ONNX Runtime, which serves MiniLM. A fake gets the head of a model and an empty graph, since it reads neither."""

    name = "ONNX Runtime"
    told: Mapping[str, str] = {
        "dimension": "other vectors than 1 of 64 values",
        "too-few": "other vectors than 1 of 64 values",
        "count": "more tokens than",
        "garbage": "other vectors than 1 of 64 values",
    }
    doubt = ""
    word = "the "

    def __init__(self, minilm: Path, graph: Path) -> None:
        self._model = minilm
        self._graph = graph

    def fake(self, directory: Path) -> FakeEngine:
        return FakeEngine(directory, "fake_onnx_worker", "worker.py")

    def log(self, paths: Paths) -> Path:
        return paths.onnx_log

    def backend(
        self,
        program: Path | None = None,
        model: Path | None = None,
        *,
        paths: Paths,
        ctx_size: int = 256,
        timings: Timings = QUICK,
        holds_home: Callable[[], bool] = lambda: True,
    ) -> EngineBackend:
        provide_graph(paths, None if program else self._graph)
        if program and not model:
            model = self.copy_of_model(program.with_name("model.gguf"))
        return OnnxBackend(
            model=model or self._model,
            model_sha256=SHA256,
            paths=paths,
            ctx_size=ctx_size,
            timings=timings,
            holds_home=holds_home,
            worker=program or WORKER,
        )

    def copy_of_model(self, path: Path) -> Path:
        if not path.exists():
            path.write_bytes(build_gguf(BERT, TENSORS))
        return path

    def parts(self, paths: Paths) -> list[Path]:
        provide_graph(paths, self._graph)
        return [self._model]


def provide_graph(paths: Paths, graph: Path | None) -> None:
    """Put a graph into a home, or an empty one for a fake, unless there is one."""
    folder = graph_folder(paths, SHA256)
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    if graph:
        folder.symlink_to(graph)
        return
    folder.mkdir(0o700)
    (folder / GRAPH).touch()
    info = GraphInfo(
        architecture="bert",
        dim=64,
        max_tokens=512,
        pooling="none",
        normalized=True,
        inputs=["input_ids", "attention_mask"],
        output="vectors",
        pad_id=0,
        files={GRAPH: 0},
    )
    (folder / RECORD).write_bytes(msgspec.json.encode(info))
