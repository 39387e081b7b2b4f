"""A child process that cannot outlive its parent, cannot block on its output, and leaves its last words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from runed.log import get_logger
from runed.processes import ProcessIdentity, die_with_parent, identify, is_alive

_log = get_logger(__name__)

_CHUNK = 64 * 1024
_TAIL_BYTES = 8 * 1024
_REAP_PATIENCE = 5.0


class OutputLog:
    """What a child writes: a file of bounded size with one predecessor, and the end of it in memory.

    Args:
        path: The file; it is appended to, and renamed to `<name>.1` when it is full. Its directory must exist.
        max_bytes: The largest size of the file.
    """

    def __init__(self, path: Path, *, max_bytes: int = 5 * 1024 * 1024) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._recent = b""
        self.written = 0

    def write(self, data: bytes) -> None:
        """Append; a disk that is full costs the lines, never the child that waits for its pipe to be read."""
        self.written += len(data)
        self._recent = (self._recent + data)[-_TAIL_BYTES:]
        with contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_size + len(data) > self._max_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                file.write(data)

    def tail(self, lines: int = 20) -> list[str]:
        """Give the last lines that are not blank, the oldest first."""
        text = self._recent.decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]


class ChildProcess:
    """A running child in a session of its own. Made by `spawn`; `exited` is done when it is gone and its output is read.

    Attributes:
        pid: Its process id, which is also its process group.
        output: What it writes on its standard output and error.
        exited: A task with the exit code; negative is the number of the signal that ended it.
    """

    def __init__(self, process: asyncio.subprocess.Process, output: OutputLog, record: Path, leftovers: Sequence[Path]) -> None:
        self.pid = process.pid
        self.output = output
        self._process = process
        self._leftovers = (record, *leftovers)
        if identity := identify(process.pid):
            # Not `write_atomically`: its fsync may take seconds, for a record that means nothing after a reboot.
            record.write_bytes(msgspec.json.encode(identity))
        self.exited: asyncio.Task[int] = asyncio.create_task(self._attend())

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], *, env: Mapping[str, str], output: OutputLog, record: Path, leftovers: Sequence[Path] = ()
    ) -> Self:
        """Start a child.

        Must be called on the thread that lives as long as the daemon, its main thread: the kernel sends the parent-death signal
        when the thread that forked ends, not when the process does.

        Args:
            argv: The program, as an absolute path, and its arguments.
            env: Its whole environment.
            output: Where its standard output and error go.
            record: Where its identity is kept while it lives, for `reap_orphan`.
            leftovers: Files that it makes and does not remove; they are, when it is gone.

        Raises:
            OSError: The program cannot be started, or the record cannot be written.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            cwd="/",  # it must not hold the directory of whoever happened to start the daemon
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at a daemon in the foreground is for the daemon, which then stops the child
            umask=0o077,
            preexec_fn=die_with_parent(),
        )
        try:
            return cls(process, output, record, leftovers)
        except OSError:
            process.kill()
            await process.wait()
            raise

    def progress(self) -> tuple[float, int]:
        """Give what grows while the child works: processor seconds of it and its children, and bytes of output."""
        try:
            process = psutil.Process(self.pid)
            # A launcher script that does not `exec` waits, while its own child does the work.
            times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
        except psutil.Error:
            return 0.0, self.output.written
        return sum(time.user + time.system for time in times), self.output.written

    async def terminate(self, grace: float) -> None:
        """Ask the child to end, and end it by force if it does not.

        Args:
            grace: Seconds between the two.
        """
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait({self.exited}, timeout=grace)
        if not done:
            _log.warning("child ignored SIGTERM and is killed", pid=self.pid, grace=grace)
            await self.kill()

    async def kill(self) -> None:
        """End the child by force and wait until it is gone."""
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.exited})

    def _signal(self, number: signal.Signals) -> None:
        # Not the return code, which a launcher script may have long before the program that it started, and our pipe, are gone.
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _attend(self) -> int:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(_CHUNK):
            self.output.write(data)
        code = await self._process.wait()
        for path in self._leftovers:
            path.unlink(missing_ok=True)
        return code


def reap_orphan(record: Path) -> None:
    """End the child of a daemon that died without doing so itself, if exactly that process still lives.

    Blocks until it is gone, so not for an event loop.

    Args:
        record: What `ChildProcess.spawn` wrote; it is removed.
    """
    try:
        identity = msgspec.json.decode(record.read_bytes(), type=ProcessIdentity)
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError):
        identity = ProcessIdentity(0, 0.0)
    if identity.pid > 1 and is_alive(identity):
        _log.warning("ending the engine that an earlier daemon left behind", pid=identity.pid)
        with contextlib.suppress(OSError, psutil.Error):
            os.killpg(identity.pid, signal.SIGKILL)
            psutil.Process(identity.pid).wait(_REAP_PATIENCE)
    record.unlink(missing_ok=True)
