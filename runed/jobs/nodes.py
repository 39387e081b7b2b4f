"""The daemon of a node, for the workers of a distributed runner. However many workers a node has, it has one daemon."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import runed
from runed.errors import DaemonUnavailableError, LifecycleError, RunedError, SettingsError

if TYPE_CHECKING:
    from runed.client.types import Health, Info

_log = logging.getLogger("runed.jobs")

_SAY_SECONDS = 10.0
"""Seconds between two lines about the same step of a long start."""

_START_SECONDS = 90.0
"""Most seconds for the command that starts a daemon."""

_NULL = subprocess.DEVNULL


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The daemon of the node on which a worker runs. The driver makes this object, and workers get copies.

    Attributes:
        home: The directory of the daemon; None means `RUNED_HOME` or `~/.runed` of the worker.
        model: The name of the model; None means the daemon's default model.
        timeout: Seconds that a start, and each call, may take; None means no limit.
    """

    home: str | os.PathLike[str] | None = None
    model: str | None = None
    timeout: float | None = None

    def prepare(self) -> Info:
        """Make sure that the daemon runs and has its model, and describe it.

        The first worker of a node starts the daemon, which fetches engine and model. The others wait for it. A warning in the
        log tells what is waited for, since runners show the warnings of a worker to their user.

        Raises:
            RunedError: The daemon cannot be started, or it cannot get its engine or model. The message names the node.
        """
        with _named_errors():
            self._start_apart()
            with runed.connect(home=self.home, timeout=self.timeout, on_progress=_Announcer().hear) as client:
                return client.wait_until_ready(model=self.model)

    def connect(self) -> runed.Client:
        """Connect to the daemon. Start it if none runs."""
        with _named_errors():
            return runed.connect(home=self.home, timeout=self.timeout)

    def _start_apart(self) -> None:
        """Start the daemon by a command if none runs.

        Ray kills the children of a worker that ends, and with it would kill the daemon that all workers of the node use. A
        daemon that a command has started is no child of the worker.
        """
        try:
            runed.connect(home=self.home, spawn=False).close()
        except DaemonUnavailableError:
            command = [sys.executable, "-P", "-m", "runed", "ensure"]
            environment = os.environ | ({"RUNED_HOME": os.fspath(self.home)} if self.home else {})
            # If no daemon can be started, the connect that follows tells why.
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    command,
                    env=environment,
                    stdin=_NULL,
                    stdout=_NULL,
                    stderr=_NULL,
                    check=False,
                    timeout=_START_SECONDS,
                )


def name() -> str:
    """Return the name of this node."""
    return socket.gethostname()


@contextmanager
def _named_errors() -> Iterator[None]:
    """Name the node in an error, since a cluster has many, and tell what a worker may lack."""
    try:
        yield
    except RunedError as error:
        message = f"node {name()}: {error.message}"
        if isinstance(error, (SettingsError, LifecycleError)):
            message += "; if workers have no home, set RUNED_HOME for them, or give `home`: a folder on a disk of the node"
        raise error.retold(message) from None


class _Announcer:
    """Logs what a start waits for, at each new step and now and then."""

    def __init__(self) -> None:
        self._step: object = None
        self._said = float("-inf")

    def hear(self, health: Health) -> None:
        step = (health.status, health.phase)
        if step == self._step and time.monotonic() - self._said < _SAY_SECONDS:
            return
        self._step, self._said = step, time.monotonic()
        amount = f" ({health.bytes_done / 1e6:,.0f} of {health.bytes_total / 1e6:,.0f} MB)" if health.bytes_total else ""
        _log.warning("runed on node %s: %s%s", name(), health.message or "waiting for the model", amount)
