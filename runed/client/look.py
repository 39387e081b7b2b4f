"""A look at a running daemon, for `runed status`."""

from __future__ import annotations

from pathlib import Path

from runed.client.calls.daemon_flows import DaemonFlows
from runed.client.calls.drive import drive
from runed.client.calls.patience import Deadline
from runed.client.target import Target
from runed.client.transport.blocking import Transport
from runed.client.types import Health, Info


def look(home: Path, *, timeout: float) -> tuple[Info, Health]:
    """Return the description and the present state of a running daemon.

    In contrast to `Client.info`, the description has only the facts that the daemon knows so far: no dimensions while the model
    is being downloaded.

    Args:
        home: The directory of the daemon.
        timeout: Seconds that each of the two answers may take.

    Raises:
        DaemonUnavailableError: No daemon runs; none is started.
        DeadlineExceededError: The daemon did not answer in time.
    """
    target = Target.resolve(home=home, socket_path=None, spawn=False)
    target.ensure(timeout)
    flows, transport = DaemonFlows(spawn=False, on_progress=None), Transport(target)
    try:
        # Info waits a while for a model that is being looked for; a Health from before would contradict it.
        info = drive(flows.present_info(Deadline(timeout)), transport.perform)
        return info, drive(flows.health(Deadline(timeout)), transport.perform)
    finally:
        transport.close()
