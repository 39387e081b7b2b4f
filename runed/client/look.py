"""Looks at a running daemon, for commands that show what it is doing. None is started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runed.client.calls.daemon_flows import DaemonFlows
from runed.client.calls.drive import drive
from runed.client.calls.patience import Deadline
from runed.client.target import Target
from runed.client.transport.blocking import Transport
from runed.client.types import Health, Info

_SHARE_OF_INFO = 0.7
"""The part of the time that Info may take. It waits for a model that is being looked for, and leaves time for Health."""


def look(home: Path, *, timeout: float) -> tuple[Info, Health]:
    """Return the description and the present state of a running daemon.

    In contrast to `Client.info`, the description has only the facts that the daemon knows so far: no dimensions while the model
    is being downloaded.

    Args:
        home: The directory of the daemon.
        timeout: Seconds that the two answers may take together.

    Raises:
        DaemonUnavailableError: No daemon runs; none is started.
        DeadlineExceededError: The daemon did not answer in time.
    """
    deadline = Deadline(timeout)
    with _reached(home, timeout) as (flows, transport):
        # Info waits a while for a model that is being looked for; a Health from before would contradict it.
        info = drive(flows.present_info(Deadline(_SHARE_OF_INFO * timeout)), transport.perform)
        return info, drive(flows.health(deadline), transport.perform)


def ask_health(home: Path, *, timeout: float) -> Health:
    """Return the present state of a running daemon. Arguments and errors are those of `look`."""
    with _reached(home, timeout) as (flows, transport):
        return drive(flows.health(Deadline(timeout)), transport.perform)


def models_in_use(home: Path, *, timeout: float) -> set[str]:
    """Return the full names of the models that a running daemon has opened, in small letters. Their engines may be suspended.

    Arguments and errors are those of `look`; besides:

    Raises:
        UnimplementedError: The daemon is of a version that knows one model only.
    """
    with _reached(home, timeout) as (flows, transport):
        models = drive(flows.list_models(Deadline(timeout)), transport.perform)
    return {model.name.lower() for model in models if model.loaded or model.fingerprint}


@contextmanager
def _reached(home: Path, timeout: float) -> Iterator[tuple[DaemonFlows, Transport]]:
    target = Target.resolve(home=home, socket_path=None, spawn=False)
    target.ensure(timeout)
    transport = Transport(target)
    try:
        yield DaemonFlows(spawn=False, on_progress=None), transport
    finally:
        transport.close()
