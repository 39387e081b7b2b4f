"""A whole session writes below the home alone, and opens no connection."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import clean_environment, short_home


class User:
    """A user with an empty home directory, in which `RUNED_HOME` is the default one.

    Args:
        home: The home directory.
        env: Settings of runed.
    """

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.home = home
        for name in ("work", "tmp"):
            (home / name).mkdir()
        own = {name: value for name, value in clean_environment().items() if not name.startswith(("XDG_", "ORT_"))}
        self._env = own | env | {"HOME": str(home), "TMPDIR": str(home / "tmp")}

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "runed", *arguments]
        done = subprocess.run(
            command, env=self._env, cwd=self.home / "work", capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files_elsewhere(self) -> list[str]:
        """Return the files of the home directory that are not in the home of runed."""
        found = []
        for folder, _, names in os.walk(self.home):
            relative = Path(folder).relative_to(self.home)
            if relative.parts[:1] != (".runed",):
                found += [str(relative / name) for name in names]
        return found

    def processes(self) -> list[psutil.Process]:
        """Return the daemon and its engines."""
        daemon = psutil.Process(json.loads((self.home / ".runed" / "daemon.json").read_bytes())["pid"])
        return [daemon, *daemon.children(recursive=True)]


@pytest.fixture
def user(llama_server: Path, minilm: Path, reranker: Path, engine: str) -> Iterator[User]:
    home = short_home()
    result = User(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm), "RUNED_ENGINE": engine})
    result.run("add", str(reranker), "--name", "judge")
    try:
        yield result
    finally:
        result.run("stop")
        shutil.rmtree(home)


@pytest.mark.slow  # two engines start
@pytest.mark.parametrize("engine", ["cpu", "onnx"])
def test_a_session_writes_nothing_outside_of_the_home_and_opens_no_connection(user: User, engine: str) -> None:
    user.run("ensure", "--wait")
    user.run("embed", "a text", "-o", "vector.npy")
    assert [each.net_connections(kind="inet") for each in user.processes()] == [[], []]
    if engine == "cpu":  # ONNX Runtime does not rerank
        user.run("rerank", "--model", "judge", "a text", __file__)
    user.run("doctor", "--offline")
    user.run("stop")
    assert user.files_elsewhere() == ["work/vector.npy"]
