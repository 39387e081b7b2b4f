"""Fixtures with homes to run commands in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.support import short_home


@pytest.fixture
def cli(home: Path, llama_server: Path, tiny_qwen3: Path) -> Iterator[Cli]:
    """A home of the test's own with a real engine and model. A daemon that the test leaves running is stopped."""
    result = Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(tiny_qwen3)})
    yield result
    result.with_environment(RUNED_CONFIG="", RUNED_CTX_SIZE="", RUNED_IDLE_TIMEOUT="").stop()


@pytest.fixture
def bare(home: Path) -> Iterator[Cli]:
    """An empty home, for commands that start no engine. A daemon that the test leaves running is stopped."""
    result = Cli(home, {"RUNED_MODEL": "/nonexistent/model.gguf"})
    yield result
    if result.daemon() is not None:
        result.stop()


@pytest.fixture(scope="session")
def served(llama_server: Path, tiny_qwen3: Path) -> Iterator[Cli]:
    """A home with a running daemon, shared by all tests that do not change it."""
    home = short_home()
    result = Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(tiny_qwen3)})
    done = result.run("embed", "warm up")
    assert done.returncode == 0, done.stderr
    yield result
    result.stop()
    shutil.rmtree(home)
