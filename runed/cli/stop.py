"""`runed stop`: end the daemon, and wait for its end."""

from __future__ import annotations

import argparse
import math
import time

import runed
from runed.cli.boundary import ExitCode
from runed.cli.options import seconds
from runed.cli.waiting import ANSWER_SECONDS
from runed.cli.watching import watched
from runed.errors import DaemonUnavailableError, DeadlineExceededError, LifecycleError
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from runed.processes import ProcessIdentity, identify, is_alive
from runed.settings import load_settings

DEFAULT_GRACE = 10.0
"""Seconds that calls in flight may take. The daemon has the same default."""

EXIT_SECONDS = 20.0
"""Seconds that a daemon may need after the grace, to stop or kill `llama-server` and to exit."""

_POLL = 0.05
"""Seconds between two looks whether the daemon has ended."""

DESCRIPTION = """\
Let the daemon finish its calls in flight and exit, and wait for its end. New
calls are refused meanwhile. Engine and model stay installed. If no daemon runs,
the command says so and exits with 0.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--grace",
        type=seconds,
        default=DEFAULT_GRACE,
        metavar="SECONDS",
        help="how long calls in flight may take before they are cut off (default: 10; at most 300)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon and print the result."""
    paths = Paths(load_settings().home)
    started = time.monotonic()
    with watched(paths, patience=None):
        stopped = _stop(paths, arguments.grace)
    if stopped:
        print(f"stopped the daemon of {paths.home} after {time.monotonic() - started:.1f} s")
    else:
        print(f"no daemon runs for {paths.home}")
    return ExitCode.OK


def _stop(paths: Paths, grace: float) -> bool:
    """Stop the daemon. Return whether there was one."""
    patience = grace + EXIT_SECONDS
    try:
        with runed.connect(home=paths.home, spawn=False, timeout=ANSWER_SECONDS) as client:
            daemon = identify(client.health().pid)
            client.shutdown(grace_seconds=math.ceil(grace))
    except (DaemonUnavailableError, DeadlineExceededError):
        # A daemon that does not answer may be draining. A stuck daemon may still obey a signal.
        return stop_daemon(paths, timeout=patience)
    if daemon is not None:
        _wait_for_end(daemon, patience)
    return True


def _wait_for_end(daemon: ProcessIdentity, patience: float) -> None:
    deadline = time.monotonic() + patience
    while is_alive(daemon):
        if time.monotonic() > deadline:
            raise LifecycleError(
                f"the daemon, pid {daemon.pid}, was asked to stop but still runs after {patience:g} s; "
                f"see `runed logs`, or end it with `kill -9 {daemon.pid}`"
            )
        time.sleep(_POLL)
