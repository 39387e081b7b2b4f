"""`runed ensure`: find or start the daemon. Clients of all languages run it if no daemon listens."""

from __future__ import annotations

import argparse
import json
import os
import time

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.options import seconds
from runed.cli.watching import watched
from runed.errors import DeadlineExceededError, RunedError, SettingsError, UnimplementedError
from runed.lifecycle.hold import lift_hold
from runed.lifecycle.presence import Condition, Presence
from runed.lifecycle.spawn import DaemonHandle, ensure_daemon
from runed.paths import Paths
from runed.processes import is_stopped
from runed.settings import load_settings
from runed.version import __version__

DESCRIPTION = """\
Make sure that a daemon of at least this version listens, and say where. Any
number of processes may run this at once: one daemon is started. A call may
follow at once: it waits for the engine. Only while the daemon downloads its
engine or model, such as the first time, it is refused with BOOTSTRAPPING.

With --wait, the command ends when embeddings are answered, also after a
download. With --warm, it also starts an engine that was suspended since nobody
embedded. Both show the progress on standard error.
"""

START_SECONDS = 60.0
"""Seconds that the start of a daemon may take if the user names no time."""

EPILOG = """\
with --json, standard output is one line of JSON, whatever happens:
  {"socket": "/home/me/.runed/embedding.sock", "pid": 4711, "version": "0.1.0",
   "started": true}
  {"error": {"reason": "DAEMON_START_FAILED", "message": "..."}}
the exit code is 0, 1 or, for a bad setting, 2. version is null if the daemon
that listens has left no record, and pid if its process cannot be seen from
here. started is true if this call started the daemon.

examples:
  runed ensure
  runed ensure --warm && python my_program.py
  runed ensure --anyway      also if `runed stop --for` keeps it stopped
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: one line of JSON on standard output")
    parser.add_argument(
        "--anyway", action="store_true", help="start it although `runed stop --for` keeps it stopped; this ends that"
    )
    waits = parser.add_mutually_exclusive_group()
    waits.add_argument("--wait", action="store_true", help="wait until embeddings are answered")
    waits.add_argument("--warm", action="store_true", help="wait until the engine is loaded")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="how long all may take (default: 60 for the start of the daemon, no limit for --wait and --warm)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Find or start the daemon."""
    began = time.monotonic()
    try:
        settings = load_settings()
        if arguments.anyway:
            lift_hold(Paths(settings.home).hold)
        with watched(Paths(settings.home), patience=None):
            handle = ensure_daemon(settings, timeout=arguments.timeout or START_SECONDS, minimum_version=__version__)
        if handle.pid is not None and is_stopped(handle.pid):
            complain(str(Presence(Paths(settings.home), Condition.STOPPED, handle.pid)))
        if handle.complaint:
            complain(handle.complaint)
        if arguments.wait or arguments.warm:
            _wait(arguments.timeout, began=began, warm=arguments.warm)
    except RunedError as error:
        if not arguments.json:
            raise
        print(json.dumps({"error": {"reason": error.reason, "message": error.message}}))
        return ExitCode.USAGE if isinstance(error, SettingsError) else ExitCode.FAILED
    tell(_as_json(handle) if arguments.json else _as_text(handle))
    return ExitCode.OK


def _wait(timeout: float | None, *, began: float, warm: bool) -> None:
    """Wait until embeddings are answered.

    Args:
        timeout: Seconds that the whole command may take; None means no limit.
        began: The time when it began.
        warm: Whether to start a suspended engine.

    Raises:
        RunedError: The daemon has no engine or model, or the time was over.
    """
    from runed import Phase, Status  # noqa: PLC0415 # 200 ms for the client, which a plain `ensure` does not use
    from runed.cli.progress import ProgressDisplay  # noqa: PLC0415 # as above
    from runed.cli.waiting import PHASES, connect  # noqa: PLC0415 # as above

    def remaining() -> float | None:
        return None if timeout is None else max(began + timeout - time.monotonic(), 0.001)

    with ProgressDisplay() as display, connect(display) as client:
        try:
            health = client.health(timeout=remaining())
            if health.status is Status.IDLE and not warm:
                return
            if health.status is Status.IDLE:
                display.update(PHASES[Phase.STARTING_LLAMA_SERVER])
            try:
                client.warm_up(timeout=remaining())
            except UnimplementedError:  # an older daemon, which starts its engine for a text alone
                client.wait_until_ready(timeout=remaining())
                client.embed("ready", timeout=remaining())
        except DeadlineExceededError:
            raise DeadlineExceededError(
                f"embeddings are not answered after {timeout:g} s; the daemon goes on, and `runed status` shows how far it is"
            ) from None


def _as_json(handle: DaemonHandle) -> str:
    return json.dumps(
        {"socket": os.fspath(handle.socket), "pid": handle.pid, "version": handle.version, "started": handle.started}
    )


def _as_text(handle: DaemonHandle) -> str:
    what = "started" if handle.started else "already running"
    return f"{what}: version {handle.version or 'unknown'}, pid {handle.pid or 'unknown'}, on {handle.socket}"
