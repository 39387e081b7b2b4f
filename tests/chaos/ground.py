"""The home under attack: its processes, its files, and reference vectors of its texts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Self

import numpy as np
import psutil
from numpy.typing import NDArray
from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest, EmbedBatchResponse

from runed.paths import Paths
from tests.support import FIXTURES, Golden, call, clean_environment, short_home
from tools.engine import programs_folder

RUNED = Path(sys.executable).with_name("runed")

TEXTS = 300
"""Texts with a reference vector, which is computed before the first fault."""

LEAST_COSINE = 0.9999

_KNOWN_FILES = frozenset(
    {
        *("config.json", "cache.secret", "http.token", "installed.json"),
        *("daemon.lock", "spawn.lock", "install.lock"),
        *("cache/engine-quirks.json", "cache/tuning.json", "cache/centroids.bin", "cache/verified.json"),
        *(f"cache/vectors.sqlite{suffix}" for suffix in ("", "-wal", "-shm", ".lock")),
        *(
            f"logs/{name}{suffix}"
            for name in ("daemon.log", "events.log", "llama-server.log")
            for suffix in ("", ".1", ".2", ".3")
        ),
    }
)
"""Files that a home may keep after its daemon has ended. Any other file is a leftover."""


class Ground:
    """A home of its own, below a folder of its own; a context manager that ends and removes everything.

    Attributes:
        home: The home.
        jobs: The folder of the jobs' inputs and outputs.
        texts: The texts with reference vectors.
        bystander: A process that is nobody's business. It must live to the end.
    """

    def __init__(self) -> None:
        self._folder = short_home()
        self.home = self._folder / "h"
        self.jobs = self._folder / "j"
        self.jobs.mkdir()
        self.paths = Paths(self.home)
        self.texts: list[str] = []
        self._references: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self.bystander = _stranger()

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment of a client, which may start the daemon with it."""
        return (
            clean_environment(
                RUNED_HOME=str(self.home),
                RUNED_LLAMA_SERVER=str(programs_folder() / "llama-server"),
                RUNED_MODEL=str(FIXTURES / "tiny-qwen3.f32.gguf"),
                RUNED_QUEUE_TEXTS="512",  # so few that the clients fill it now and then
                PATH=f"{RUNED.parent}{os.pathsep}{os.environ['PATH']}",  # where the clients look for `runed`
            )
            | changes
        )

    def run(self, *arguments: str, timeout: float = 90.0, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `runed` in this home."""
        return subprocess.run(
            [RUNED, *arguments],
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def learn(self) -> float:
        """Compute the reference vectors. Return the smallest cosine of those that other software computed, too."""
        started = self.run("ensure")
        assert started.returncode == 0, started.stderr
        golden = Golden.load("tiny-qwen3.golden.json")
        made = [f"text {number} of chaos, {'which is longer ' * (number % 7)}" for number in range(TEXTS - len(golden.texts))]
        self.texts = [*golden.texts, *made]
        answer = call("connect+proto", self.paths.socket, "EmbedBatch", EmbedBatchRequest(texts=self.texts))
        assert isinstance(answer.message, EmbedBatchResponse), answer
        self._references = np.array([item.vector for item in answer.message.embeddings], dtype=np.float32)
        return float(golden.cosines(self._references[: len(golden.texts)]).min())

    def cosine(self, number: int, vector: list[float]) -> float:
        """Return the cosine of a vector with the reference of its text; 0 if it is no vector of that size."""
        array = np.array(vector, dtype=np.float32)
        return float(array @ self._references[number]) if array.shape == self._references[number].shape else 0.0

    def daemons(self) -> list[psutil.Process]:
        """Return the daemons of this home."""
        return [process for process in self._processes() if "serve" in _command(process)]

    def engines(self) -> list[psutil.Process]:
        """Return the engines of this home. An engine gets no `RUNED_HOME`, but its command line names the socket."""
        place = str(self.home)
        return [
            process
            for process in psutil.process_iter()
            if (command := _command(process)) and "llama-server" in command[0] and any(place in word for word in command)
        ]

    def leftovers(self) -> list[str]:
        """Return what a home and its jobs should not hold once everything has ended: processes, sockets, temporary files."""
        found = [f"process {process.pid}: {' '.join(_command(process)[:4])}" for process in self._processes() + self.engines()]
        for folder, _, names in os.walk(self.home):
            for path in (Path(folder, name) for name in names):
                name = str(path.relative_to(self.home))
                if stat.S_ISSOCK(path.lstat().st_mode):
                    found.append(f"socket {name}")
                elif name not in _KNOWN_FILES:
                    found.append(f"file {name}")
        found += [f"output {path.name}" for path in self.jobs.iterdir() if path.suffix not in {".jsonl", ".npy"}]
        return found

    def bystander_died(self) -> bool:
        """Return whether the bystander was ended. Another one takes its place then."""
        if self.bystander.poll() is None:
            return False
        self.bystander = _stranger()
        return True

    def _processes(self) -> list[psutil.Process]:
        """Return the processes that were started with this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RUNED_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):  # it is another user's, or has just ended
                continue
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes() + self.engines():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.bystander.kill()
        self.bystander.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _stranger() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "100000"], start_new_session=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except (psutil.Error, OSError):  # it has just ended
        return []
