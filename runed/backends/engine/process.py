"""A child process that cannot outlive its parent and cannot block on its output. The end of its output is kept for errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from runed.errors import printable_bytes
from runed.files import make_way, read_record
from runed.log import get_logger
from runed.os_errors import naming
from runed.processes import ProcessIdentity, die_with_parent, identify, signal_masks_of, threads_of

_log = get_logger(__name__)

_CHUNK = 64 * 1024
_MAX_LOG_BYTES = 5 * 1024 * 1024
_TAIL_BYTES = 8 * 1024
_QUOTED_LINES = 3
_QUOTED_LINE_LENGTH = 240

_REQUESTS_TO_END = {signal.SIGINT, signal.SIGTERM}
"""Signals that ask a program to end, and that it may handle."""

_REAP_PATIENCE = 5.0
"""Seconds to wait for the end of a killed orphan."""


class OutputLog:
    """The output of a child: a file of at most 5 MiB with one predecessor, and the end of the output in memory.

    Args:
        path: The file; it is appended to, and renamed to `<name>.1` when it is full. Its directory must exist.

    Attributes:
        written: The number of bytes so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent = b""
        self.written = 0

    def write(self, data: bytes) -> None:
        """Append to the output. A full disk loses it: an error would leave the pipe unread, and the child blocked."""
        self.written += len(data)
        data = printable_bytes(data)  # an engine tells the names in a model's file as they are
        self._recent = (self._recent + data)[-_TAIL_BYTES:]
        with contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_size + len(data) > _MAX_LOG_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                file.write(data)

    def tail(self, lines: int) -> list[str]:
        """Return the last lines that are not blank, the oldest first."""
        text = self._recent.decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def last_words(self) -> str:
        """Return the end of the output as a clause that can be appended to an error."""
        lines = [line[:_QUOTED_LINE_LENGTH] for line in self.tail(_QUOTED_LINES)]
        return f"; its last words: {' / '.join(lines)}" if lines else "; it said nothing"


class ChildProcess:
    """A running child in a session of its own. Made by `spawn`.

    Attributes:
        pid: Its process id, which is also its process group.
        output: Its standard output and error.
        exited: A task that ends when the child is gone and its output is read. Its result is the exit code, or minus the
            signal that ended it.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        output: OutputLog,
        record: Path | None,
        leftovers: Sequence[Path],
        holds_home: Callable[[], bool],
    ) -> None:
        self.pid = process.pid
        self.output = output
        self._process = process
        self._record = record
        self._leftovers = leftovers
        self._holds_home = holds_home
        self._inherited = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._identity = identify(process.pid)
        if self._identity and record:
            # Not `write_atomically`: its fsync may take seconds, and the record is worthless after a reboot.
            with naming(record):
                record.write_bytes(msgspec.json.encode(self._identity))
        self.exited: asyncio.Task[int] = asyncio.create_task(self._attend())

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        output: OutputLog,
        record: Path | None = None,
        leftovers: Sequence[Path] = (),
        holds_home: Callable[[], bool] = lambda: True,
    ) -> Self:
        """Start a child.

        Must be called on the main thread, which lives as long as the daemon: the kernel sends the parent-death signal when
        the thread that forked ends, not when the process does.

        Args:
            argv: The program, as an absolute path, and its arguments.
            env: Its whole environment.
            output: The log for its standard output and error.
            record: The file for its identity, which `reap_orphan` reads. None for a child that soon ends by itself.
            leftovers: Files that the child makes. They and `record` are removed when the child is gone.
            holds_home: Returns whether the files at these paths are still this process's. Otherwise they are left alone.

        Raises:
            OSError: The program cannot be started, or the record cannot be written.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            cwd="/",  # otherwise the directory that the daemon was started in could not be unmounted
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at a daemon in the foreground is for the daemon, which then stops the child
            umask=0o077,
            preexec_fn=die_with_parent(),
        )
        try:
            return cls(process, output, record, leftovers, holds_home)
        except OSError:
            process.kill()
            await process.wait()
            raise

    def progress(self) -> tuple[float, int]:
        """Return two sums that grow while the child works: processor seconds of its main thread, and bytes of output.

        Other threads count texts. They go on although the main thread, which computes, hangs. Outside of Linux, all count.
        """
        seconds = [thread.seconds for thread in threads_of(self.pid) if thread.id == self.pid]
        if not seconds:
            with contextlib.suppress(psutil.Error, OSError):  # OSError: no file descriptor is left
                times = psutil.Process(self.pid).cpu_times()
                seconds = [times.user, times.system]
        return sum(seconds), self.output.written

    def progress_of_descendants(self) -> float:
        """Return their processor seconds. Looking for them reads all processes of the machine."""
        try:
            times = [member.cpu_times() for member in psutil.Process(self.pid).children(recursive=True)]
        except (psutil.Error, OSError):
            return 0.0
        return sum(time.user + time.system for time in times)

    def wants_to_work(self, *, main: bool) -> bool:
        """Return whether the main thread, or any thread, runs or waits for a processor or a disk.

        Args:
            main: Whether only the main thread counts. Outside of Linux, nothing is known of others.
        """
        if self._state() in {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP}:
            return True
        return not main and any(thread.state in "RD" for thread in threads_of(self.pid))

    @property
    def stopped(self) -> bool:
        """Whether a signal, such as SIGSTOP, has stopped the child."""
        return self._state() == psutil.STATUS_STOPPED

    @property
    def is_ending(self) -> bool:
        """Whether the main thread is in its handler of a signal that asks to end. Outside of Linux, nothing is known of it.

        The kernel blocks a signal, and only this, while it is handled. For a moment, all are blocked when a thread is started.
        """
        masks = signal_masks_of(self.pid)
        handled = masks.blocked - self._inherited
        return bool(handled) and handled <= masks.caught & _REQUESTS_TO_END

    async def terminate(self, grace: float) -> None:
        """Send SIGTERM to the child, and kill it if it still lives after `grace` seconds."""
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait({self.exited}, timeout=grace)
        if not done:
            _log.warning("child ignored SIGTERM and is killed", pid=self.pid, grace=grace)
            await self.kill()

    async def kill(self) -> None:
        """Kill the child and wait until it is gone."""
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.exited})

    def _state(self) -> str:
        try:
            return psutil.Process(self.pid).status()
        except (psutil.Error, OSError):
            return ""

    def _signal(self, number: signal.Signals) -> None:
        # Not the return code: the child may be a script that has ended while its program still lives and holds our pipe.
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _attend(self) -> int:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(_CHUNK):
            self.output.write(data)
        code = await self._process.wait()
        if self._holds_home():
            for path in filter(None, (self._record, *self._leftovers)):
                path.unlink(missing_ok=True)
        return code


def reap_orphan(record: Path) -> None:
    """Kill the child that a daemon left behind when it died, if exactly that process still lives. Block for up to 5 seconds.

    Args:
        record: The file that `ChildProcess.spawn` wrote; it is removed.
    """
    identity = read_record(record, ProcessIdentity)
    if identity is not None and identity.pid > 1 and identify(identity.pid) == identity:
        _log.warning("ending the engine that an earlier daemon left behind", pid=identity.pid)
        with contextlib.suppress(OSError, psutil.Error):
            os.killpg(identity.pid, signal.SIGKILL)
            psutil.Process(identity.pid).wait(_REAP_PATIENCE)
    make_way(record)
    record.unlink(missing_ok=True)
