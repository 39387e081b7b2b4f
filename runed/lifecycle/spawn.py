"""Finds the daemon of a home, or starts it. Concurrent processes start only one."""

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
from runed.paths import Paths, check_home, ensure_home, ensure_private_dir
from runed.settings import Settings

_POLL = 0.05
"""Seconds between two looks."""

_MAX_LAUNCHES = 3
"""Most daemons that one call starts. Each but the last may meet another daemon that holds the home."""


@dataclass(frozen=True, slots=True)
class DaemonHandle:
    """A daemon that listens.

    Attributes:
        pid: Its process id; None if it left no record.
        socket: The path to connect to.
        version: Its version, as in "0.1.0"; None if it left no record.
        started: Whether this call started it.
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
        settings: The settings, of which home and `runed_binary` count.
        timeout: Seconds after which the call fails, including the drain of an older daemon.
        minimum_version: The oldest version that may stay. An older daemon is replaced after its drain, if a newer one can be
            started.

    Returns:
        The daemon. It listens, but may still be fetching its engine and model.

    Raises:
        DaemonStartError: The daemon ended, or did not listen in time; the message ends with the tail of its log.
        ForeignPathError: A foreign file is at the place of the home or the socket, or another user has a hand in the home.
    """
    check_home(settings.home)
    search = _Search(settings, time.monotonic() + timeout, minimum_version)
    try:
        return search.find() or search.start()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DaemonStartError(f"the daemon cannot be started: {where}{error.strerror or error}") from None


def stop_daemon(paths: Paths, *, timeout: float = 30.0) -> bool:
    """Ask the recorded daemon to end by SIGTERM and wait until it has. For a daemon that does not answer a Shutdown.

    Args:
        paths: The home.
        timeout: Seconds to wait for its drain.

    Returns:
        Whether there was a daemon to stop.

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


@dataclass(frozen=True, slots=True)
class _Running:
    """A daemon listens and takes calls. It may have left no record."""

    record: DaemonRecord | None


@dataclass(frozen=True, slots=True)
class _Older:
    """A daemon lives that is too old, and a newer one can be started."""

    record: DaemonRecord


@dataclass(frozen=True, slots=True)
class _Draining:
    """A daemon lives but takes no calls: it drains, or it does not listen."""

    record: DaemonRecord


@dataclass(frozen=True, slots=True)
class _Absent:
    """No daemon lives."""


class _Search:
    """One call of `ensure_daemon`.

    Args:
        settings: As for `ensure_daemon`.
        deadline: The end of the search, on the clock of `time.monotonic`.
        minimum_version: As for `ensure_daemon`.
    """

    def __init__(self, settings: Settings, deadline: float, minimum_version: str | None) -> None:
        self._settings = settings
        self._paths = Paths(settings.home)
        self._deadline = deadline
        self._minimum_version = minimum_version
        self._record: DaemonRecord | None = None

    def find(self) -> DaemonHandle | None:
        """Return the running daemon that may stay, or None."""
        found = self._look()
        return self._handle(found.record, started=False) if isinstance(found, _Running) else None

    def start(self) -> DaemonHandle:
        """Start a daemon under the spawn lock, unless another process does."""
        ensure_home(self._paths.home)
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
                    # An exit code of 0 tells that it met the lock of another daemon, which listens soon or has just ended.
                    if launch.exit_code != 0 or not remaining:
                        raise launch.failure()
                self._pause("another daemon holds this home but does not listen")
        raise AssertionError("the last launch returns or raises")

    def _look(self) -> _Running | _Older | _Draining | _Absent:
        """Look at the socket and at `daemon.json`, once each."""
        listens = probe(self._paths.socket)
        present = DaemonRecord.read(self._paths.daemon_record)
        if present is None and listens:
            return _Running(None)
        # A daemon removes its record a moment before it releases its lock. So the last record that was read counts.
        self._record = record = present or self._record
        if record is None:
            return _Absent()
        new_enough = self._minimum_version is None or _release(record.version) >= _release(self._minimum_version)
        if listens and new_enough and not record.draining:
            return _Running(record)
        if not record.is_alive():
            return _Running(record) if listens else _Absent()
        # Without the last condition, every connect would restart an old program named by `runed_binary`.
        if not new_enough and not record.draining and _release(record.version) < _release(self._available_version):
            return _Older(record)
        return _Running(record) if listens and not record.draining else _Draining(record)

    @functools.cached_property
    def _available_version(self) -> str:
        return command_version(find_command(self._settings))

    def _outlast_predecessor(self) -> DaemonHandle | None:
        """Wait until no daemon lives, and ask one that is too old to drain. Return a daemon that listens after all.

        Another daemon beside it could not serve: it holds the daemon's lock until its last call is answered.
        """
        asked = False
        while True:
            look = self._look()
            if isinstance(look, _Running):
                return self._handle(look.record, started=False)
            if isinstance(look, _Absent):
                return None
            # Only once: a second SIGTERM would make it drop the calls that it is finishing.
            if isinstance(look, _Older) and not asked:
                asked = look.record.terminate()
            pid = look.record.pid
            self._pause(f"its daemon, pid {pid}, takes no calls and does not end; end it with `kill {pid}`")

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
    """Return the numbers that order versions. A pre-release counts as its release, so that the two never restart each other."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _wait_for_end(record: DaemonRecord, deadline: float) -> bool:
    while record.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
