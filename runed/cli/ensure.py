"""`runed ensure`: find or start the daemon. Clients of all languages run it if no daemon listens."""

from __future__ import annotations

import argparse
import json
import os

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.options import seconds
from runed.cli.watching import watched
from runed.errors import RunedError, SettingsError
from runed.lifecycle.presence import Condition, Presence
from runed.lifecycle.spawn import DaemonHandle, ensure_daemon
from runed.paths import Paths
from runed.processes import is_stopped
from runed.settings import load_settings
from runed.version import __version__

DESCRIPTION = """\
Make sure that a daemon of at least this version listens, and say where. Any
number of processes may run this at once: one daemon is started. It may still be
fetching its engine and model; `runed status` and the call Health show its
progress.
"""

EPILOG = """\
with --json, standard output is one line of JSON, whatever happens:
  {"socket": "/home/me/.runed/embedding.sock", "pid": 4711, "version": "0.1.0",
   "started": true}
  {"error": {"reason": "DAEMON_START_FAILED", "message": "..."}}
the exit code is 0, 1 or, for a bad setting, 2. version is null if the daemon
that listens has left no record, and pid if its process cannot be seen from
here. started is true if this call started the daemon.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: one line of JSON on standard output")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="SECONDS", help="how long to try (default: 60)")


def run(arguments: argparse.Namespace) -> int:
    """Find or start the daemon."""
    try:
        settings = load_settings()
        with watched(Paths(settings.home), patience=None):
            handle = ensure_daemon(settings, timeout=arguments.timeout, minimum_version=__version__)
    except RunedError as error:
        if not arguments.json:
            raise
        print(json.dumps({"error": {"reason": error.reason, "message": error.message}}))
        return ExitCode.USAGE if isinstance(error, SettingsError) else ExitCode.FAILED
    if handle.pid is not None and is_stopped(handle.pid):
        complain(str(Presence(Paths(settings.home), Condition.STOPPED, handle.pid)))
    tell(_as_json(handle) if arguments.json else _as_text(handle))
    return ExitCode.OK


def _as_json(handle: DaemonHandle) -> str:
    return json.dumps(
        {"socket": os.fspath(handle.socket), "pid": handle.pid, "version": handle.version, "started": handle.started}
    )


def _as_text(handle: DaemonHandle) -> str:
    what = "started" if handle.started else "already running"
    return f"{what}: version {handle.version or 'unknown'}, pid {handle.pid or 'unknown'}, on {handle.socket}"
