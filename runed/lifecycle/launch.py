"""One attempt to start a daemon: the choice of the program, its start, and the tail of its log if it fails."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import site
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.errors import DaemonStartError
from runed.os_errors import mount_point
from runed.paths import Paths
from runed.processes import describe_exit
from runed.settings import Settings, daemon_environment, search_path
from runed.version import __version__

READY = b"ready\n"
"""The bytes that a daemon writes to its `--ready-fd` once it listens."""

_EXIT_GRACE = 3.0
"""Seconds that a daemon may take to end after it has closed its pipe."""

_OVERRUN = 0.5
"""Seconds that a start may take longer than its caller allows, to wait for the end of the daemon."""

_VERSION_TIMEOUT = 10.0
"""Seconds that `runed version` may take."""

_TAIL_LINES = 20
"""Lines of the log that an error quotes."""

_TAIL_BYTES = 64 * 1024
"""Bytes of the log that are searched for these lines."""


def find_command(settings: Settings) -> list[str]:
    """Find the `runed` to start.

    The first of these is taken: `runed_binary` of `config.json`; this interpreter, if runed is installed in it; `runed` on the
    `PATH`; the launcher that `runed install` wrote into the home.

    Args:
        settings: The settings, of which `runed_binary` and the home count.

    Returns:
        The command, without arguments of its own.

    Raises:
        DaemonStartError: There is no `runed`.
    """
    if settings.runed_binary:
        return [str(settings.runed_binary)]
    if _is_installed_here():
        # -P: the daemon starts in "/". A folder "/runed", common in containers, would hide the package.
        return [sys.executable, "-P", "-m", "runed"]
    if found := shutil.which("runed", path=search_path()):
        return [found]
    installed = Paths(settings.home).bin / "runed"
    if os.access(installed, os.X_OK):
        return [str(installed)]
    raise DaemonStartError(
        "there is no `runed` program to start the daemon with; "
        "run `pip install runed`, or name one as runed_binary in config.json"
    )


def command_version(command: list[str], *, timeout: float) -> str:
    """Ask a `runed` for its version.

    Args:
        command: A command from `find_command`.
        timeout: Seconds that it may take; it gets 10 at most.

    Returns:
        The version, as in "0.1.0"; "" if the command does not tell one.
    """
    if command[0] == sys.executable:
        return __version__
    try:
        result = subprocess.run(
            [*command, "version"],
            env=daemon_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=min(timeout, _VERSION_TIMEOUT),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(rb"\d+(\.\d+)+", result.stdout)
    return found[0].decode() if found else ""


class LogTail:
    """What is written to the log of a daemon from now on.

    Args:
        path: The log. Its directory must exist.

    Attributes:
        file: The open log, to append to.

    Raises:
        OSError: The log cannot be written.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self.file = os.fdopen(os.open(path, flags, 0o600), "rb")
        self._path = path
        self._start = os.fstat(self.file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def told(self) -> str:
        """Return the last lines in words for an error."""
        if tail := self._lines():
            return f"its log {self._path} ends with:\n{tail}"
        if not os.fstatvfs(self.file.fileno()).f_bavail:
            return f"its log {self._path} cannot be written: the file system at {mount_point(self._path)} is full"
        return f"its log {self._path} says nothing"

    def _lines(self) -> str:
        size = os.fstat(self.file.fileno()).st_size
        data = os.pread(self.file.fileno(), _TAIL_BYTES, max(self._start, size - _TAIL_BYTES))
        with contextlib.suppress(OSError):
            # A daemon that rotated its log writes standard error to the old file and the log to the new one.
            if not os.path.samestat(os.fstat(self.file.fileno()), self._path.stat()):
                data += self._path.read_bytes()[-_TAIL_BYTES:]
        return "\n".join(data.decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]).strip()


class Launch:
    """A daemon that was just started, with its pipe, which tells that it listens, and its log, which tells why it does not.

    The end of the context closes the pipe and the log. The daemon goes on.

    Args:
        command: A command from `find_command`.
        paths: The paths of the home. Its directory for logs must exist.
        settings: The settings of the home, which may name further variables for the daemon.

    Raises:
        OSError: The program cannot be run, or the log cannot be written.
    """

    def __init__(self, command: list[str], paths: Paths, settings: Settings | None = None) -> None:
        self._log_path = paths.daemon_log
        self._given_up = False
        with contextlib.ExitStack() as on_error:
            self._log = on_error.enter_context(LogTail(self._log_path))
            reader, writer = os.pipe()
            self._ready = on_error.enter_context(os.fdopen(reader, "rb", buffering=0))
            with os.fdopen(writer, "wb"):
                self._process = subprocess.Popen(
                    [*command, "serve", "--log-file", str(self._log_path), "--ready-fd", str(writer)],
                    cwd="/",
                    env=daemon_environment(settings=settings) | {"RUNED_HOME": str(paths.home)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._log.file,
                    pass_fds=(writer,),
                    start_new_session=True,
                )
            self._resources = on_error.pop_all()
        # Without this thread, a client that lives longer than the daemon would keep a zombie.
        self._reaper = threading.Thread(target=self._process.wait, name="runed-reaper", daemon=True)
        self._reaper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def wait_until_ready(self, deadline: float) -> bool:
        """Wait until the daemon listens or has ended. It is ended if it does not listen at the deadline.

        Args:
            deadline: The deadline on the clock of `time.monotonic`.

        Returns:
            Whether it listens.
        """
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        heard = b""
        while heard != READY and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if not (chunk := self._ready.read(len(READY) - len(heard))):
                # The pipe is closed when the process ends, or a moment before.
                self._reaper.join(max(_OVERRUN, min(_EXIT_GRACE, deadline - time.monotonic())))
                break
            heard += chunk
        if heard != READY:
            self._end()
        return heard == READY

    @property
    def exit_code(self) -> int | None:
        """The exit code of the daemon, as in `subprocess`; None while it lives."""
        return self._process.returncode

    def failure(self) -> DaemonStartError:
        """Return the error of a daemon that does not listen, with the last lines that this start wrote to the log."""
        code = self.exit_code
        if code is None or self._given_up:
            how = "did not listen in time and was ended"
        else:
            how = f"{describe_exit(code)} before it listened"
        return DaemonStartError(f"the daemon {how}; {self._log.told()}", metadata={"log": str(self._log_path)})

    def _end(self) -> None:
        """End the daemon at once, since its caller has no time left. It serves nobody yet, and each of its steps is whole."""
        if self._process.poll() is None:
            self._given_up = True
            # The signal goes to the whole session, since `runed` may be a shell script around the daemon.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reaper.join(_OVERRUN)


def _is_installed_here() -> bool:
    """Return whether a new process of this interpreter, without our environment and `sys.path`, finds runed.

    It does not in a frozen process, in a program that embeds Python, and if runed is only on the `PYTHONPATH`.
    """
    import importlib.metadata  # noqa: PLC0415 # 30 ms that a client which finds a daemon running never spends

    if getattr(sys, "frozen", False) or not Path(sys.executable or "").name.startswith(("python", "pypy")):
        return False
    try:
        place = Path(str(importlib.metadata.distribution("runed").locate_file(""))).resolve()
    except importlib.metadata.PackageNotFoundError:
        return False
    return place in {Path(directory).resolve() for directory in (*site.getsitepackages(), site.getusersitepackages())}
