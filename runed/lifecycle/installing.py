"""Installs and removes the service of a home. Meanwhile no client starts a daemon."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from runed.errors import LifecycleError, RunedError
from runed.lifecycle.launch import find_command
from runed.lifecycle.service import Service, service_at, service_of
from runed.lifecycle.spawn import stop_daemon
from runed.lifecycle.units import Plan
from runed.locking import LockFile
from runed.paths import Paths, ensure_home, ensure_private_dir
from runed.settings import Settings, service_environment

_POLL = 0.05
"""Seconds between two tries to take the spawn lock."""

_LOCK_PATIENCE = 60.0
"""Seconds to wait for a client that starts a daemon."""

_SYSTEMD_RUNS = Path("/run/systemd/system")
"""The directory that is there where systemd is process 1, as sd_booted(3) tells."""

_START_TIMEOUT = 60.0
"""Seconds that the first start may take."""


def install_service(settings: Settings) -> Service:
    """Install the service of a home, or install it anew, and let it start the daemon.

    A daemon that runs is stopped first: calls in flight have a second, and clients send again what was cut off.

    Args:
        settings: The settings. Those of the environment are handed on to the service.

    Returns:
        The service, whose daemon listens.

    Raises:
        LifecycleError: The manager does not run for this user, or it refuses.
        DaemonStartError: The daemon does not start by it. The service is removed again.
    """
    paths, service = Paths(settings.home), service_at(settings.home)
    if not service.is_reachable():
        raise LifecycleError(f"{_why_unreachable(service)}. Without a service, each client starts the daemon by itself")
    plan = Plan(
        name=service.name,
        home=paths.home,
        socket=paths.socket,
        http=settings.http,
        command=find_command(settings),
        log=paths.daemon_log,
        environment=service_environment(settings),
        environment_file=paths.service_environment,
    )
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    ensure_private_dir(paths.logs)
    with _no_other_start(paths):
        if service_of(paths.home) is not None:
            service.unload()
        stop_daemon(paths)
        service.write(plan)
        try:
            service.load()
            service.start(_START_TIMEOUT)
        except RunedError:
            with contextlib.suppress(RunedError):
                _remove(service)
            raise
    return service


def remove_service(settings: Settings) -> Service | None:
    """Stop the daemon of the service of a home, and remove the service.

    Args:
        settings: The settings, of which the home counts.

    Returns:
        The service that was removed; None if none is installed.

    Raises:
        LifecycleError: The manager did not stop the daemon. The files are removed in any case.
    """
    service = service_of(settings.home)
    if service is not None:
        with _no_other_start(Paths(settings.home)):
            _remove(service)
    return service


def _why_unreachable(service: Service) -> str:
    """Return why the manager of services cannot be asked, and what to do."""
    if service.manager == "systemd" and not _SYSTEMD_RUNS.is_dir():
        return "systemd does not run here, as in a container; let what starts programs here run `runed serve`"
    return f"{service.manager} cannot be asked for this user; log in at the machine or by ssh, and not by `su` or `sudo`"


def _remove(service: Service) -> None:
    try:
        service.unload()
    finally:
        for file in service.files:
            file.unlink(missing_ok=True)
        service.forget()


@contextlib.contextmanager
def _no_other_start(paths: Paths) -> Iterator[None]:
    """Keep clients from starting a daemon until the end of the block."""
    with LockFile(paths.spawn_lock) as lock:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not lock.try_acquire():
            if time.monotonic() >= deadline:
                raise LifecycleError(f"process {lock.holder()} is starting the daemon and has not finished; try again")
            time.sleep(_POLL)
        yield
