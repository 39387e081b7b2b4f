"""Asks a running daemon for its models, for commands. None is started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runed.client.calls.daemon_flows import DaemonFlows
from runed.client.calls.drive import drive
from runed.client.calls.patience import Deadline
from runed.client.target import Target
from runed.client.transport.blocking import Transport


def models_in_use(home: Path, *, timeout: float) -> set[str]:
    """Return the full names of the models that a running daemon has opened, in small letters. Their engines may be suspended.

    Args:
        home: The directory of the daemon.
        timeout: Seconds that the answer may take.

    Raises:
        DaemonUnavailableError: No daemon runs; none is started.
        DeadlineExceededError: The daemon did not answer in time.
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
