"""`runed stop`: end the daemon, and wait for its end."""

from __future__ import annotations

import argparse
import math
import time

import runed
from runed.cli.boundary import ExitCode, tell
from runed.cli.options import seconds
from runed.cli.waiting import ANSWER_SECONDS
from runed.cli.watching import watched
from runed.errors import DaemonUnavailableError, DeadlineExceededError
from runed.lifecycle.spawn import find_process, stop_daemon, wait_for_end
from runed.paths import Paths
from runed.settings import load_settings

DEFAULT_GRACE = 10.0
"""Seconds that calls in flight may take. The daemon has the same default."""

EXIT_SECONDS = 20.0
"""Seconds that a daemon may need after the grace, to stop or kill `llama-server` and to exit."""

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
    parser.add_argument("--force", action="store_true", help="kill a daemon that has not ended after this time")


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon and print the result."""
    paths = Paths(load_settings().home)
    started = time.monotonic()
    if _stop(paths, arguments.grace, force=arguments.force):
        tell(f"stopped the daemon of {paths.home} after {time.monotonic() - started:.1f} s")
    else:
        tell(f"no daemon runs for {paths.home}")
    return ExitCode.OK


def _stop(paths: Paths, grace: float, *, force: bool) -> bool:
    """Stop the daemon. Return whether there was one."""
    patience = grace + (0 if force else EXIT_SECONDS)
    process = find_process(paths)  # before the call, since the daemon may be gone after it
    with watched(paths, patience=None):
        try:
            with runed.connect(home=paths.home, spawn=False, timeout=ANSWER_SECONDS) as client:
                client.shutdown(grace_seconds=math.ceil(grace))
        except (DaemonUnavailableError, DeadlineExceededError):
            # A daemon that does not answer may be draining. A stuck daemon may still obey a signal.
            return stop_daemon(paths, process, timeout=patience, force=force)
        wait_for_end(paths, process, timeout=patience, force=force)
    return True
