"""Fake engines and small GGUF files for tests of the backend."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from runed.backends.base import BackendStatus
from runed.backends.engine.backend import EngineBackend
from runed.backends.engine.timings import Timings
from runed.backends.llama.backend import LlamaBackend
from runed.errors import BackendUnavailableError
from runed.paths import Paths

FAKES = Path(__file__).resolve().parent.parent / "fakes"

QUICK = Timings(
    start_stall=5.0,
    start_limit=20.0,
    term_grace=5.0,
    look=0.05,
    hang=0.6,
    probe=0.3,
    backoff=0.02,
    backoff_limit=0.1,
    max_failures=3,
    pause=0.3,
)
"""Timings with which a test of a failure takes about one second."""

MakeBackend = Callable[..., LlamaBackend]


@asynccontextmanager
async def all_stopped(paths: Paths) -> AsyncIterator[list[EngineBackend]]:
    """Hand out a list for the backends of a test. Stop each at the end, and check that its processes are gone."""
    made: list[EngineBackend] = []
    yield made
    for backend in made:
        await backend.stop()
    engines = [process for process in psutil.Process().children() if str(paths.engine_socket) in process.cmdline()]
    assert not engines
    assert not paths.engine_record.exists()
    assert not paths.engine_socket.is_socket()


def check_stopped(made: Sequence[EngineBackend]) -> None:
    """Check that no earlier backend of a test runs.

    Two backends in one home would each end the other's engine, taking it for one that an earlier daemon left behind.
    """
    assert all(earlier.state.status is BackendStatus.STOPPED for earlier in made), "stop the earlier backend first"


class FakeEngine:
    """A fake engine in its own directory, beside its `behaviour.json`.

    Args:
        directory: The directory to make.
        fake: The name of a module in `tests/fakes`.
        name: The name of the program.
    """

    def __init__(self, directory: Path, fake: str = "fake_llama_server", name: str = "llama-server") -> None:
        directory.mkdir()
        self.executable = directory / name
        self.executable.write_text(
            f"#!{sys.executable} -ESs\n"
            f"import sys\nsys.path.insert(0, {str(FAKES.parent.parent)!r})\nfrom tests.fakes.{fake} import main\nmain()\n"
        )
        self.executable.chmod(0o700)
        self.behave()

    def behave(self, **behaviour: Any) -> None:  # noqa: ANN401 # the keys that `misbehaving` and the fake list
        """Set the behaviour of the next start."""
        self.executable.with_name("behaviour.json").write_text(json.dumps(behaviour))

    @property
    def launches(self) -> list[dict[str, Any]]:
        """The `argv`, `environment` and `pid` of each start."""
        log = self.executable.with_name("launches.jsonl")
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


async def fail_to_start(backend: EngineBackend, match: str) -> None:
    """Start a backend whose engine does not come up, and check the error."""
    with pytest.raises(BackendUnavailableError, match=match) as caught:
        await backend.start()
    assert caught.value.retry_after == pytest.approx(QUICK.pause, abs=0.3)
    assert backend.state.status is BackendStatus.FAILED
    assert backend.state.reason in caught.value.message


def gguf_string(value: str) -> bytes:
    """Return a string as GGUF stores it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: bool | int | float | str | list[str]) -> bytes:  # noqa: FBT001, PYI041 # a GGUF tells these types apart
    """Return a type and a value as GGUF stores them."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + gguf_string(value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))


QWEN3: dict[str, Any] = {
    "general.architecture": "qwen3",
    "general.name": "small",
    "qwen3.embedding_length": 64,
    "qwen3.context_length": 2048,
    "qwen3.pooling_type": 3,
    "qwen3.rope.freq_base": 1e6,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_eos_token": True,
    "general.file_type": 18,
}
"""Metadata of a valid model."""

TENSORS = (("token_embd.weight", (64, 3), 0, 0),)
"""Name, shape, type and offset of the tensors of a valid model."""

DATA_SIZE = 64 * 3 * 4


def build_gguf(
    pairs: Mapping[str, Any] = QWEN3,
    tensors: Sequence[tuple[str, Sequence[int], int, int]] = TENSORS,
    *,
    version: int = 3,
    data_size: int = DATA_SIZE,
) -> bytes:
    """Return the bytes of a GGUF. Nothing is checked, so that it can be wrong in any way."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for name, value in pairs.items():
        head += gguf_string(name) + gguf_value(value)
    for name, shape, kind, offset in tensors:
        head += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(data_size)
