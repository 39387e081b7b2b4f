"""Finds the daemon of a home, or starts it. Concurrent processes start only one."""

from __future__ import annotations

import functools
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runed.errors import DaemonStartError, LifecycleError
from runed.files import read_record, write_atomically
from runed.lifecycle.hold import check_hold
from runed.lifecycle.launch import Launch, command_version, find_command
from runed.lifecycle.listener import find_listener
from runed.lifecycle.marks import differences
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.service import Service, is_dormant, service_of
from runed.locking import LockFile
from runed.os_errors import explain
from runed.paths import Paths, check_home, ensure_home, ensure_private_dir
from runed.peers import Peer
from runed.processes import ProcessIdentity, identify, is_alive, is_gone, program_names, send_signal
from runed.settings import Settings

_POLL = 0.05
"""Seconds between two looks."""

_KILL_PATIENCE = 5.0
"""Seconds to wait for the end of a daemon that was killed."""

_MAX_HOMES = 3
"""Most tries to make a home that is removed again and again."""

_REAP_PATIENCE = 1.0
"""Seconds to wait for the parent of a daemon that has ended. A parent that never asks for the end leaves a zombie."""

_MAX_LAUNCHES = 3
"""Most daemons that one call starts. Each but the last may meet another daemon that holds the home."""


@dataclass(frozen=True, slots=True)
class DaemonHandle:
    """A daemon that listens.

    Attributes:
        pid: Its process id; None if it lives in a pid namespace that this process cannot see.
        socket: The path to connect to.
        version: Its version, as in "0.1.0"; None if it left no record.
        started: Whether this call started it.
        differences: The settings of the caller that it has not, as the variables or keys that set them.
        service: The name of the service that starts it; "" if clients do.
    """

    pid: int | None
    socket: Path
    version: str | None
    started: bool
    differences: tuple[str, ...] = ()
    service: str = ""

    @property
    def complaint(self) -> str:
        """The sentence for people about the settings that differ; "" if none does."""
        if not self.differences:
            return ""
        return f"the daemon on {self.socket} was started with other settings than these: {', '.join(self.differences)}; " + (
            f"`runed service install` gives them to the service {self.service}, which starts it"
            if self.service
            else "with `runed stop`, the next client starts one that has them"
        )


def ensure_daemon(settings: Settings, *, timeout: float = 60.0, minimum_version: str | None = None) -> DaemonHandle:
    """Find the daemon of a home, or start it.

    Any number of processes may call this at once: one starts the daemon and the others wait for it. The daemon is detached: it
    belongs to no terminal and outlives its caller.

    Args:
        settings: The settings. A daemon that runs already may have others, as its handle tells.
        timeout: Seconds after which the call fails, including the drain of an older daemon.
        minimum_version: The oldest version that may stay. An older daemon is replaced after its drain, if a newer one can be
            started.

    Returns:
        The daemon. It listens, but may still be fetching its engine and model.

    Raises:
        DaemonStartError: The daemon ended, or did not listen in time; the message ends with the tail of its log.
        ForeignPathError: A foreign file is at the place of the home or the socket, or another user has a hand in the home.
        KeptStoppedError: No daemon runs, and `runed stop --for` keeps it so.
    """
    check_home(settings.home, trust_parents=settings.trust_parents)
    search = _Search(settings, time.monotonic() + timeout, minimum_version)
    for remaining in reversed(range(_MAX_HOMES)):
        try:
            return search.find() or search.start()
        except OSError as error:
            # The home may have been removed while the files in it were made.
            if not remaining or not isinstance(error, FileNotFoundError):
                raise DaemonStartError(
                    f"the daemon cannot be started: {explain(error)}; `runed doctor` looks for the cause"
                ) from None
    raise AssertionError("the last try returns or raises")


def find_process(paths: Paths) -> ProcessIdentity | None:
    """Return the process that provably is the daemon of a home; None if there is none that this process can see.

    The pid in a record may be that of another process: after a crash, or in a container that shares the home. So the record is
    a proof only if boot, pid namespace and start time agree.
    """
    if is_dormant(paths):
        return None
    listener, record = find_listener(paths.socket), DaemonRecord.read(paths.daemon_record)
    if listener and listener.pid:
        return _daemon_of(listener, record)
    return record.process if record is not None and identify(record.pid) == record.process else None


def _daemon_of(listener: Peer, record: DaemonRecord | None) -> ProcessIdentity | None:
    """Return the process that listens, if it is a daemon, and not a program that hands connections on, such as ssh.

    The kernel tells its pid here. In the record of a container it is another one, but the start time is the same everywhere.
    """
    process = identify(listener.pid) if listener.pid else None
    if process is None:
        return None
    recorded = record is not None and record.start_time == process.start_time
    return process if recorded or "runed" in program_names(process.pid) else None


def stop_daemon(paths: Paths, process: ProcessIdentity | None = None, *, timeout: float = 30.0, force: bool = False) -> bool:
    """Ask a daemon to end by SIGTERM and wait until it has. For a daemon that does not answer a Shutdown.

    Args:
        paths: The home.
        process: Its process as `find_process` told it; None means to look for it.
        timeout: Seconds to wait for its drain.
        force: Whether to kill it then.

    Returns:
        Whether there was a daemon to stop.

    Raises:
        LifecycleError: It did not end in time, or it lives where it cannot be signalled from here.
    """
    # A daemon that ends removes its socket and its record a moment before it is gone.
    process = find_process(paths) or process
    if process is None:
        if is_dormant(paths) or find_listener(paths.socket) is None:
            return False
        raise LifecycleError(
            f"the daemon on {paths.socket} does not answer, and its process cannot be seen from here; "
            "run `runed stop` where it runs, such as in its container"
        )
    send_signal(process, signal.SIGTERM)
    send_signal(process, signal.SIGCONT)  # a stopped process, as after Ctrl-Z, would not hear of the other
    wait_for_end(paths, process, timeout=timeout, force=force)
    return True


def wait_for_end(paths: Paths, process: ProcessIdentity | None, *, timeout: float, force: bool) -> None:
    """Wait until a daemon that was asked to end is gone.

    Args:
        paths: Its home.
        process: Its process; None if it cannot be seen from here, and only its socket can be watched.
        timeout: Seconds to wait.
        force: Whether to kill it then.

    Raises:
        LifecycleError: It did not end in time.
    """
    _wait_for_end(paths, process, timeout=timeout, force=force)
    if process is not None:
        _comes_true(lambda: is_gone(process), _REAP_PATIENCE)


def _wait_for_end(paths: Paths, process: ProcessIdentity | None, *, timeout: float, force: bool) -> None:
    def has_ended() -> bool:
        return not is_alive(process) if process else find_listener(paths.socket) is None

    if _comes_true(has_ended, timeout):
        return
    if process is None:
        raise LifecycleError(
            f"the daemon on {paths.socket} did not end within {timeout:g} s, and its process cannot be seen from here; "
            "run `runed stop` where it runs, such as in its container"
        )
    if not force:
        raise LifecycleError(
            f"the daemon, pid {process.pid}, did not end within {timeout:g} s; see `runed logs`, or run `runed stop --force`"
        )
    send_signal(process, signal.SIGKILL)
    if not _comes_true(has_ended, _KILL_PATIENCE):
        raise LifecycleError(f"the daemon, pid {process.pid}, was killed and has not ended; it waits for a disk or a device")


@dataclass(frozen=True, slots=True)
class _Running:
    """A daemon listens and takes calls. It may have left no record."""

    record: DaemonRecord | None
    listener: Peer


@dataclass(frozen=True, slots=True)
class _Replaceable:
    """A daemon lives that is too old, or has failed with other settings. A better one can be started."""

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

    @property
    def _service(self) -> Service | None:
        """The service of the home. It is looked for each time, since it may be removed while the spawn lock is waited for."""
        return service_of(self._settings.home)

    @property
    def _manager_listens(self) -> bool:
        """Whether a service manager may be who listens. It tells when its daemon does, also if that starts just now."""
        service = self._service
        return service is not None and service.listens_itself

    def find(self) -> DaemonHandle | None:
        """Return the running daemon that may stay, or None."""
        found = self._look()
        return self._found(found) if isinstance(found, _Running) else None

    def start(self) -> DaemonHandle:
        """Start a daemon under the spawn lock, unless another process does."""
        ensure_home(self._paths.home, trust_parents=self._settings.trust_parents)
        ensure_private_dir(self._paths.logs)
        with LockFile(self._paths.spawn_lock) as lock:
            while not lock.try_acquire():
                self._pause(f"process {lock.holder()} is starting the daemon and has not finished; try again in a minute")
                if handle := self.find():
                    return handle
            for remaining in reversed(range(_MAX_LAUNCHES)):
                if handle := self._outlast_predecessor():
                    return handle
                check_hold(self._paths)
                if handle := self._start_by_service():
                    return handle
                with Launch(find_command(self._settings), self._paths, self._settings) as launch:
                    if launch.wait_until_ready(self._deadline):
                        record = DaemonRecord.read(self._paths.daemon_record)
                        return self._handle(record, record.pid if record else None, started=True)
                    # An exit code of 0 tells that it met the lock of another daemon, which listens soon or has just ended.
                    if launch.exit_code != 0 or not remaining:
                        raise launch.failure()
                self._pause("another daemon holds this home but does not listen")
        raise AssertionError("the last launch returns or raises")

    def _look(self) -> _Running | _Replaceable | _Draining | _Absent:
        """Look at the socket and at `daemon.json`, once each."""
        listener = find_listener(self._paths.socket)
        present = DaemonRecord.read(self._paths.daemon_record)
        if present is None and listener:
            return _Absent() if self._manager_listens else _Running(None, listener)
        # A daemon removes its record a moment before it releases its lock. So the last record that was read counts.
        self._record = record = present or self._record
        if record is None:
            return _Absent()
        new_enough = self._minimum_version is None or _release(record.version) >= _release(self._minimum_version)
        if listener and new_enough and not record.draining and not self._has_failed_otherwise(record):
            return _Running(record, listener)
        # The lock proves that the daemon is of this home as it is now: the daemon of a home that was removed is not waited for.
        if not record.is_alive() or not LockFile(self._paths.daemon_lock).is_held():
            self._record = None
            return _Running(record, listener) if listener and not self._manager_listens else _Absent()
        if listener and new_enough and not record.draining:
            return _Replaceable(record)
        # Without the last condition, every connect would restart an old program named by `runed_binary`.
        if not new_enough and not record.draining and _release(record.version) < _release(self._available_version):
            process = _daemon_of(listener, record) if listener else None
            if process is not None and process.pid == record.pid:
                # The record of an old version proves nothing by itself, but the kernel tells who listens.
                record = msgspec.structs.replace(record, scope=process.scope)
            return _Replaceable(record)
        return _Running(record, listener) if listener and not record.draining else _Draining(record)

    def _has_failed_otherwise(self, record: DaemonRecord) -> bool:
        """Return whether a daemon could not get its model, with other settings than these. A service starts it as it is.

        Settings with which its predecessors failed do not count: clients with two wrong settings would end each other's daemon
        for ever.
        """
        if not record.failed or record.settings is None or self._service is not None:
            return False
        return all(differences(self._settings, marks) for marks in (record.settings, *self._replaced()))

    def _replaced(self) -> list[dict[str, str]]:
        return read_record(self._paths.replaced, list[dict[str, str]]) or []

    def _note_replaced(self, record: DaemonRecord) -> None:
        """Note the settings of a daemon that failed and is replaced. The next start without a predecessor forgets them."""
        ensure_private_dir(self._paths.replaced.parent)
        write_atomically(self._paths.replaced, msgspec.json.encode([*self._replaced(), record.settings]))

    @functools.cached_property
    def _available_version(self) -> str:
        service = self._service
        command = (service.command() if service else []) or find_command(self._settings)
        return command_version(command, timeout=max(0.0, self._deadline - time.monotonic()))

    def _start_by_service(self) -> DaemonHandle | None:
        """Let the service of the home start the daemon. Return None if there is none, or its manager cannot be asked.

        Without its manager, as in a container or a job of cron, a daemon is started like any other. The manager takes its place
        as soon as it runs: it takes the path of the socket, and the daemon notices that and leaves.
        """
        service = self._service
        if service is None:
            return None
        started = service.start(max(0.0, self._deadline - time.monotonic()))
        if not started and find_listener(self._paths.socket) is None:
            return None
        record = DaemonRecord.read(self._paths.daemon_record)
        return self._handle(record, record.pid if record else None, started=started)

    def _outlast_predecessor(self) -> DaemonHandle | None:
        """Wait until no daemon lives, and ask one that can be replaced to drain. Return a daemon that listens after all.

        Another daemon beside it could not serve: it holds the daemon's lock until its last call is answered.
        """
        asked = lived = False
        while True:
            look = self._look()
            if isinstance(look, _Running):
                return self._found(look)
            if isinstance(look, _Absent):
                if not lived:
                    self._paths.replaced.unlink(missing_ok=True)
                return None
            lived = True
            # Only once: a second SIGTERM would make it drop the calls that it is finishing.
            if isinstance(look, _Replaceable) and not asked:
                if look.record.failed and look.record.settings is not None:
                    self._note_replaced(look.record)
                asked = look.record.terminate()
            self._pause(f"its daemon, pid {look.record.pid}, takes no calls and does not end; end it with `runed stop`")

    def _pause(self, reason: str) -> None:
        if time.monotonic() >= self._deadline:
            raise DaemonStartError(f"no daemon listens on {self._paths.socket} in time: {reason}")
        time.sleep(_POLL)

    def _found(self, running: _Running) -> DaemonHandle:
        record = running.record
        process = _daemon_of(running.listener, record)
        if process is None and record is not None and record.is_alive() and self._manager_listens:
            process = record.process  # the kernel names the manager until the daemon has taken the socket over
        return self._handle(record, process.pid if process else None, started=False)

    def _handle(self, record: DaemonRecord | None, pid: int | None, *, started: bool) -> DaemonHandle:
        version, marks = (record.version, record.settings) if record else (None, None)
        if marks is None or (started and self._service is None):  # a client handed its settings on
            return DaemonHandle(pid, self._paths.socket, version, started)
        differing = differences(self._settings, marks)
        service = self._service if differing else None
        return DaemonHandle(pid, self._paths.socket, version, started, differing, service.name if service else "")


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that order versions. A pre-release counts as its release, so that the two never restart each other."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _comes_true(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll a condition; return whether it held in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
