"""Finding the daemon of a home, or starting it: one at a time, whoever asks."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass
from pathlib import Path

from runed.errors import DaemonStartError, LifecycleError
from runed.lifecycle.launch import Launch, command_version, find_command
from runed.lifecycle.listener import probe
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths, ensure_private_dir
from runed.settings import Settings

_POLL = 0.05
_MAX_LAUNCHES = 3


@dataclass(frozen=True, slots=True)
class DaemonHandle:
    """A daemon that listens.

    Attributes:
        pid: Its process id, or None where it left no record of itself.
        socket: The path to connect to.
        version: Its version as in "0.1.0", or None where it left no record of itself.
        started: Whether this very call started it.
    """

    pid: int | None
    socket: Path
    version: str | None
    started: bool


def ensure_daemon(settings: Settings, *, timeout: float = 60.0, minimum_version: str | None = None) -> DaemonHandle:
    """Find the daemon of a home, or start it.

    Any number of processes may call this at once: one starts the daemon and the others wait for it. The daemon is detached: it
    belongs to no terminal and outlives its caller.

    Args:
        settings: Tells the home and, if set, the `runed` to start.
        timeout: Seconds after which to give up, the drain of an older daemon included.
        minimum_version: Restart a daemon that is older than this, after its drain, if a newer one can be started.

    Returns:
        The daemon. It listens, but may still be fetching its engine and model.

    Raises:
        DaemonStartError: The daemon ended, or did not listen in time; the message ends with the tail of its log.
        ForeignPathError: Something that is not ours stands where the home or the socket belongs.
    """
    search = _Search(settings, time.monotonic() + timeout, minimum_version)
    try:
        return search.find() or search.start()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DaemonStartError(f"the daemon cannot be started: {where}{error.strerror or error}") from None


def stop_daemon(paths: Paths, *, timeout: float = 30.0) -> bool:
    """Ask the recorded daemon to end by SIGTERM and wait until it has; for one that does not answer a Shutdown.

    Args:
        paths: The home.
        timeout: Seconds to wait for its drain.

    Returns:
        Whether there was one to stop.

    Raises:
        LifecycleError: It did not end in time.
    """
    record = DaemonRecord.read(paths.daemon_record)
    if record is None or not record.terminate():
        return False
    if not _wait_for_end(record, time.monotonic() + timeout):
        raise LifecycleError(
            f"the daemon, pid {record.pid}, did not end within {timeout:g} s; end it with `kill -9 {record.pid}`"
        )
    return True


class _Search:
    """One call of `ensure_daemon`.

    Args:
        settings: As there.
        deadline: When to give up, on the clock of `time.monotonic`.
        minimum_version: As there.
    """

    def __init__(self, settings: Settings, deadline: float, minimum_version: str | None) -> None:
        self._settings = settings
        self._paths = Paths(settings.home)
        self._deadline = deadline
        self._minimum_version = minimum_version

    def find(self) -> DaemonHandle | None:
        """Give the daemon that listens, unless there is none, or it is about to end or has to make room for a newer one."""
        if not probe(self._paths.socket):
            return None
        record = DaemonRecord.read(self._paths.daemon_record)
        if record and ((record.draining and record.is_alive()) or self._must_restart(record)):
            return None
        return self._handle(record, started=False)

    def start(self) -> DaemonHandle:
        """Start a daemon under the spawn lock, unless somebody else does."""
        ensure_private_dir(self._paths.home)
        ensure_private_dir(self._paths.logs)
        with LockFile(self._paths.spawn_lock) as lock:
            while not lock.try_acquire():
                self._pause(f"process {lock.holder()} is starting the daemon and has not finished; end it and try again")
                if handle := self.find():
                    return handle
            for remaining in reversed(range(_MAX_LAUNCHES)):
                if handle := self._outlast_predecessor():
                    return handle
                with Launch(find_command(self._settings), self._paths) as launch:
                    if launch.wait_until_ready(self._deadline):
                        return self._handle(DaemonRecord.read(self._paths.daemon_record), started=True)
                    # An exit code of 0 says that it met the lock of another daemon, which listens soon or has just ended.
                    if launch.exit_code != 0 or not remaining:
                        raise launch.failure()
                self._pause("another daemon holds this home but does not listen")
        raise AssertionError("the last launch returns or raises")

    def _must_restart(self, record: DaemonRecord) -> bool:
        """Tell whether the daemon is older than wanted and a newer one can be started in its place.

        Without the second condition, an old program named by `runed_binary` would be restarted at every connect for ever.
        """
        return (
            self._minimum_version is not None
            and _release(record.version) < _release(self._minimum_version)
            and record.is_alive()
            and _release(record.version) < _release(self._available_version)
        )

    @functools.cached_property
    def _available_version(self) -> str:
        return command_version(find_command(self._settings))

    def _outlast_predecessor(self) -> DaemonHandle | None:
        """Wait for a daemon that is draining, and make one that is too old drain; give one that listens after all.

        Starting another beside it would be in vain: it holds the daemon's lock until its last call is answered.
        """
        asked = False
        record = None
        while True:
            if handle := self.find():
                return handle
            # A daemon removes its record a moment before it ends and gives up its lock, so what was read once stays in force.
            record = DaemonRecord.read(self._paths.daemon_record) or record
            if record is None or not record.is_alive():
                return None
            # One that drains already would take it for the wish to drop what it is finishing.
            if not asked and not record.draining and self._must_restart(record):
                asked = record.terminate()
            self._pause(f"its daemon, pid {record.pid}, takes no calls and does not end; end it with `kill {record.pid}`")

    def _pause(self, reason: str) -> None:
        if time.monotonic() >= self._deadline:
            raise DaemonStartError(f"no daemon listens on {self._paths.socket} in time: {reason}")
        time.sleep(_POLL)

    def _handle(self, record: DaemonRecord | None, *, started: bool) -> DaemonHandle:
        return DaemonHandle(
            pid=record.pid if record else None,
            socket=self._paths.socket,
            version=record.version if record else None,
            started=started,
        )


def _release(version: str) -> tuple[int, ...]:
    """Give the numbers that order versions; pre-releases count as their release, so that they never restart each other."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _wait_for_end(record: DaemonRecord, deadline: float) -> bool:
    while record.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
