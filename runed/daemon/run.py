"""The process of a daemon: its lock, its record, its sockets and its signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from runed.daemon.assembly import Daemon, assemble
from runed.daemon.draining import SIGNAL_GRACE, Draining
from runed.errors import AlreadyRunningError, LifecycleError
from runed.lifecycle.activation import Activation
from runed.lifecycle.hold import check_hold
from runed.lifecycle.launch import READY
from runed.lifecycle.listener import Listener, probe
from runed.lifecycle.loopback import Loopback
from runed.lifecycle.marks import marks_of
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.log import configure_logging, get_logger, is_for_people, log_unobserved_exception
from runed.paths import Paths, ensure_home, ensure_private_dir, ensure_socket_dir
from runed.processes import return_large_blocks
from runed.settings import Settings
from runed.version import __version__

EVICTION_CHECK_INTERVAL = 0.5
"""Seconds between two checks that home and socket are still this daemon's."""

PREDECESSOR_PATIENCE = 330.0
"""Seconds to wait for a daemon that holds the home. A drain takes 300 s at most (`MAX_GRACE`), and its end some more."""

_LOCK_POLL = 0.05
"""Seconds between two tries to take its lock."""

_SWITCH_INTERVAL = 0.001
"""Seconds for which a thread may keep the interpreter while the event loop waits for it. Python's default is 0.005."""

_log = get_logger(__name__)


def run(settings: Settings, *, log_file: Path | None = None, ready_fd: int | None = None, notices: Sequence[str] = ()) -> int:
    """Serve until a signal or a `Shutdown`, on the sockets of a service manager if there are some.

    Args:
        settings: The settings.
        log_file: The file to log to; None means standard error.
        ready_fd: A pipe to the process that started this one. One line is written to it once the socket listens.
        notices: Sentences about the settings for the log.

    Returns:
        The exit code: 0, also if another daemon serves this home. Standard error names that daemon.

    Raises:
        ForeignPathError: A foreign file is in the way; it is left untouched.
        KeptStoppedError: `runed stop --for` keeps the daemon stopped.
        LifecycleError: The daemon that serves this home does not end, although a service manager listens in its place.
        SettingsError: The port of `RUNED_HTTP` cannot be used, or the service manager listens elsewhere.
    """
    os.umask(0o077)
    activation = Activation.take_over()  # first, so that no child gets what is meant for this process
    paths = Paths(settings.home)
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    ensure_private_dir(paths.logs)
    configure_logging(
        log_file,
        events=paths.events_log if log_file == paths.daemon_log else None,
        readable=is_for_people(settings.log),
        level=settings.log_level,
    )
    for notice in notices:
        _log.warning("settings", problem=notice)
    try:
        with activation, LockFile(paths.daemon_lock) as lock:
            _take(lock, paths, activation if activation.claim(paths.socket, settings.http)[0] else None)
            check_hold(paths)  # a client of an earlier version does not know the mark
            _serve(settings, paths, lock, activation, ready_fd)
    except AlreadyRunningError as error:
        print(f"runed: {error}; nothing to do", file=sys.stderr)  # noqa: T201 # for a person at a terminal, not for the log
    return 0


def _take(lock: LockFile, paths: Paths, activation: Activation | None) -> None:
    """Take the daemon's lock.

    Args:
        lock: The lock.
        paths: The paths of the home.
        activation: What the service manager handed over, if it listens on the socket of the home. Clients then reach this
            process alone, and the daemon that holds the lock notices that and leaves. Its end is waited for.

    Raises:
        AlreadyRunningError: Another daemon holds the lock, and nobody needs this one.
        LifecycleError: It does not release the lock.
    """
    if lock.try_acquire():
        return
    if activation is None:
        raise AlreadyRunningError(f"pid {lock.holder() or 'unknown'} already serves {paths.socket}")
    _log.info(
        "waiting for the end of the daemon that holds this home", pid=lock.holder(), patience_seconds=PREDECESSOR_PATIENCE
    )
    activation.tell(f"STATUS=waiting for the end of pid {lock.holder() or 'unknown'}, which holds the home")
    deadline = time.monotonic() + PREDECESSOR_PATIENCE
    while not lock.try_acquire():
        if time.monotonic() >= deadline:
            raise LifecycleError(
                f"pid {lock.holder() or 'unknown'} holds {paths.daemon_lock} and does not end; end that process"
            )
        time.sleep(_LOCK_POLL)


def _serve(settings: Settings, paths: Paths, lock: LockFile, activation: Activation, ready_fd: int | None) -> None:
    return_large_blocks()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    ensure_socket_dir(paths.socket)
    lent, lent_http = activation.claim(paths.socket, settings.http)
    if not lent and probe(paths.socket):
        # That daemon holds no lock of this home. Its files here, such as a record, stay untouched.
        raise AlreadyRunningError(f"another daemon already listens on {paths.socket}")
    with contextlib.ExitStack() as stack:
        with _signals_held_back():
            # Before the record, which contains the port, and so before the socket. A taken port is an error of the start.
            token = paths.http_token if settings.http_token else None
            http = stack.enter_context(Loopback.open(settings.http, token, lent=lent_http)) if settings.http else None
            record = DaemonRecord.of_this_process(paths.socket, http=http.url if http else "", settings=marks_of(settings))
            # Before the socket listens: a client that finds the socket reads the record at once.
            record.write(paths.daemon_record)
            stack.callback(record.remove, paths.daemon_record)
            listener = stack.enter_context(Listener.adopt(lent, paths.socket) if lent else Listener.bind(paths.socket))

        async def serve() -> None:
            asyncio.get_running_loop().set_exception_handler(log_unobserved_exception)
            daemon = assemble(settings, paths, lock=lock, record=record, listener=listener, http=http)
            await _serve_until_drained(
                daemon, lock=lock, listener=listener, http=http, activation=activation, ready_fd=ready_fd
            )

        asyncio.run(serve())


async def _serve_until_drained(
    daemon: Daemon,
    *,
    lock: LockFile,
    listener: Listener,
    http: Loopback | None,
    activation: Activation,
    ready_fd: int | None,
) -> None:
    """Serve until a signal, a call or the loss of home or socket begins the drain; then drain."""
    draining = daemon.draining
    with _signals_call(partial(draining.begin, SIGNAL_GRACE)):
        # First, so that an engine that is installed loads its model while the servers are made.
        daemon.pool.begin()
        try:
            face = await daemon.build_face()
            for server in face.servers:
                await server.start()
        except BaseException:
            await daemon.pool.close()
            raise
        activation.tell("READY=1", f"STATUS=serving, version {__version__}")
        if ready_fd is not None:
            _announce(ready_fd)
        places = {"socket": str(listener.path)} | ({"http": http.url, "token": http.token is not None} if http else {})
        _log.info("serving", **places, pid=os.getpid(), version=__version__)
        if http and http.exposed:
            _log.warning("other machines may reach the port, and what they send is not encrypted", address=http.address)
        gc.freeze()  # what was made until here stays to the end, so the collector need not look at it again and again
        gc.enable()  # see `runed serve`
        host = face.host
        async with _eviction_watch(lock, listener, draining), face.exporting():
            await draining.wait()
            activation.tell("STOPPING=1", f"STATUS=finishing {host.in_flight} calls")
            _log.info("shutting down", in_flight=host.in_flight, grace_seconds=draining.grace)
            daemon.pool.interrupt()
            await draining.stop(face.servers)
        await daemon.pool.close()
    _log.info("stopped", uptime_seconds=round(host.uptime), requests=host.total_requests)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Hold signals back until the end of the block.

    Otherwise a signal could come after a file is made and before its removal is registered, and the file would remain. A signal
    mask does not help, since the threads of numpy's BLAS would take the signal then.
    """
    came: list[int] = []
    for number in _signals():
        signal.signal(number, lambda number, _: came.append(number))
    yield
    for number in _signals():
        # Until the event loop handles the signals, the default action would leave socket and record behind.
        signal.signal(number, _leave)
    if came:
        sys.exit(0)


def _signals() -> list[signal.Signals]:
    """Return the signals that begin the drain; a second one ends its grace. With `nohup`, SIGHUP stays ignored."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def _leave(number: int, frame: object) -> None:  # noqa: ARG001 # Python calls it so
    sys.exit(0)


@contextlib.contextmanager
def _signals_call(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _signals():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in _signals():
            loop.remove_signal_handler(number)
            # The default action would end this process before its socket and record are removed.
            signal.signal(number, signal.SIG_IGN)


@contextlib.asynccontextmanager
async def _eviction_watch(lock: LockFile, listener: Listener, draining: Draining) -> AsyncIterator[None]:
    """Drain if the socket's path leads elsewhere, and end at once if the lock's does.

    No client can find this daemon any more. Without the lock, another daemon may already serve the home, and this one must not
    stand in its way.
    """

    async def watch() -> None:
        while lock.is_current():  # no event tells that a path was replaced
            if not draining.begun and not listener.is_ours():
                _log.warning("the socket's path is no longer this daemon's; leaving", socket=str(listener.path))
                draining.begin(SIGNAL_GRACE)
            await asyncio.sleep(EVICTION_CHECK_INTERVAL)
        _log.warning("the home was removed or replaced, or its daemon.lock; leaving at once", socket=str(listener.path))
        draining.cut()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _announce(ready_fd: int) -> None:
    """Tell the process that started this one that the socket listens. That process may be gone."""
    with contextlib.suppress(OSError):
        os.write(ready_fd, READY)
    with contextlib.suppress(OSError):
        os.close(ready_fd)
