"""The place of the attacks: homes, daemons and commands of `runed`, and the table of attacks."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.backends.support import FakeEngine
from tests.support import FIXTURES, RunningDaemon, clean_environment, short_home
from tools.engine import programs_folder

RUNED = Path(sys.executable).with_name("runed")
ROOT = Path(__file__).resolve().parents[2]
MINILM = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"
NOBODY = 65534
"""The user id of the neighbour."""


@dataclass(frozen=True)
class Measured:
    """The result of an attack.

    Attributes:
        text: What was measured.
        ok: Whether the bar was met; None if this machine or user cannot try the attack.
        time: Whether the bar is a time or a size, which a busy machine may miss.
    """

    text: str
    ok: bool | None
    time: bool = False


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        item: The number of its subject in the table, as in "7".
        name: What the attacker does.
        bar: What must hold.
        run: Does it.
        slow: Whether it takes longer than some seconds.
    """

    item: str
    name: str
    bar: str
    run: Callable[[Arena], Measured]
    slow: bool = False


ATTACKS: list[Attack] = []
"""All attacks, in the order of their modules."""


def attack(
    item: str, name: str, bar: str, *, slow: bool = False, root: bool = False
) -> Callable[[Callable[[Arena], Measured]], Callable[[Arena], Measured]]:
    """Add a function to the table.

    Args:
        item: As in `Attack`, as are `name`, `bar` and `slow`.
        name: See above.
        bar: See above.
        slow: See above.
        root: Whether only root can do it, since it needs a second user.
    """

    def add(run: Callable[[Arena], Measured]) -> Callable[[Arena], Measured]:
        def guarded(arena: Arena) -> Measured:
            return Measured("only root can try it", None) if root and os.getuid() else run(arena)

        ATTACKS.append(Attack(item, name, bar, guarded, slow))
        return run

    return add


@dataclass
class Arena:
    """Makes what an attack needs, and removes it at the end."""

    _stack: ExitStack = field(default_factory=ExitStack)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def folder(self) -> Path:
        """A folder of a short path."""
        path = short_home()
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    @cached_property
    def daemon(self) -> RunningDaemon:
        """A daemon with default settings and the tiny model, for attacks after which it still serves."""
        return self.started()

    def new(self) -> Path:
        """Return the path of a home that does not exist yet."""
        home = self.folder / f"h{next(self._numbers)}"
        self._stack.callback(end_all_of, home)
        return home

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """Return the environment of a client of a home."""
        return (
            clean_environment(
                RUNED_HOME=str(home),
                RUNED_LLAMA_SERVER=str(programs_folder() / "llama-server"),
                RUNED_MODEL=str(FIXTURES / "tiny-qwen3.f32.gguf"),
                PATH=f"{RUNED.parent}{os.pathsep}{os.environ['PATH']}",
            )
            | changes
        )

    def run(
        self,
        home: Path,
        *arguments: str,
        timeout: float = 60.0,
        extra: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
        **changes: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of `runed`. A command that does not end has the exit code 124."""
        process = subprocess.Popen(
            [RUNED, *arguments],
            env=self.environment(home, **changes) | dict(extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=preexec_fn,  # noqa: PLW1509 # only to inherit something odd
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            return subprocess.CompletedProcess(process.args, 124, output.decode(), errors.decode(errors="replace"))
        return subprocess.CompletedProcess(
            process.args, process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
        )

    def started(self, *, engine: Path | None = None, model: Path | None = None, **settings: str) -> RunningDaemon:
        """Run a daemon in a home of its own until the end of the attack, and return it when it is ready."""
        home = self.new()
        home.mkdir(mode=0o700)
        defaults = {
            "RUNED_LLAMA_SERVER": str(engine or programs_folder() / "llama-server"),
            "RUNED_MODEL": str(model or FIXTURES / "tiny-qwen3.f32.gguf"),
        }
        daemon = RunningDaemon(home, defaults | settings)
        self._stack.callback(daemon.close)
        daemon.wait_for("STATUS_OK", timeout=60)
        return daemon

    def fake_engine(self, **behaviour: Any) -> FakeEngine:  # noqa: ANN401 # the keys that fake_llama_server.py lists
        """Make an engine that misbehaves."""
        engine = FakeEngine(self.folder / f"e{next(self._numbers)}")
        engine.behave(**behaviour)
        return engine

    @contextmanager
    def bystander(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process that is nobody's business."""
        process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


def end_all_of(home: Path) -> None:
    """End the daemon and the engine of a home."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            ours = process.environ().get("RUNED_HOME") == str(home) and "serve" in process.cmdline()
            if ours or any(str(home) in word for word in process.cmdline() if "engine.sock" in word):
                process.send_signal(signal.SIGKILL)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command wrote for people, shortened."""
    lines = (result.stderr or result.stdout).strip().splitlines()
    return lines[-1][:160] if lines else "nothing"


def is_bug(result: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a command failed without an answer for its user."""
    return "this is a bug" in result.stderr or "Traceback" in result.stderr or result.returncode < 0 or result.returncode == 124
