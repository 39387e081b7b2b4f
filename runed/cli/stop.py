"""`runed stop`: end the daemon, and wait for its end."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence

import msgspec

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.home_alone import load_home
from runed.cli.options import duration, seconds
from runed.cli.status import client_words
from runed.cli.watching import watched
from runed.errors import DaemonUnavailableError, DeadlineExceededError, RunedError
from runed.lifecycle.asking import Asker, Connected, Health
from runed.lifecycle.hold import LONGEST, Hold, write_hold
from runed.lifecycle.service import service_of
from runed.lifecycle.spawn import find_process, stop_daemon, wait_for_end
from runed.locking import LockFile
from runed.paths import Paths, ensure_home
from runed.settings import Settings

DEFAULT_GRACE = 10.0
"""Seconds that calls in flight may take. The daemon has the same default."""

EXIT_SECONDS = 20.0
"""Seconds that a daemon may need after the grace, to stop or kill `llama-server` and to exit."""

_SPAWN_SECONDS = 10.0
"""Seconds to wait for a process that is starting a daemon, and has not seen the mark that forbids it."""

_POLL = 0.05
"""Seconds between two looks at it."""

DESCRIPTION = """\
Let the daemon finish its calls in flight and exit, and wait for its end. New
calls are refused meanwhile. Engine and model stay installed. If no daemon runs,
the command says so and exits with 0.

Programs that are connected start the daemon again with their next call. With
--for, nobody starts it for a time: clients of all languages fail with
KEPT_STOPPED, and say until when. A restart of the machine does not change that.
`runed ensure --anyway` ends it early.
"""

EPILOG = """\
with --json, standard output is one JSON object: stopped (whether a daemon ran),
seconds, clients (the other programs that were connected), and
kept_stopped_seconds with --for.

examples:
  runed stop
  runed stop --for 10m       and let no program start it for ten minutes
  runed stop --grace 60      let the calls in flight take a minute
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "--grace",
        type=seconds,
        default=DEFAULT_GRACE,
        metavar="SECONDS",
        help="how long calls in flight may take before they are cut off (default: 10; at most 300)",
    )
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")
    parser.add_argument("--force", action="store_true", help="kill a daemon that has not ended after this time")
    parser.add_argument(
        "--for",
        dest="hold",
        type=_hold_time,
        metavar="DURATION",
        help="keep it stopped for so long, such as 90s, 10m or 1h30m; at most 720h",
    )


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon and print the result."""
    settings = load_home()
    paths = Paths(settings.home)
    started = time.monotonic()
    hold = _keep_stopped(settings, paths, arguments.hold) if arguments.hold else None
    others: list[Connected] = []

    def note(health: Health) -> None:
        others.extend(health.others())
        if not arguments.json:
            _warn_of_others(health, others, arguments.grace, kept=hold is not None)

    stopped = _stop(paths, arguments.grace, force=arguments.force, note=note)
    passed = time.monotonic() - started
    service = service_of(paths.home)
    if service is not None and hold is not None:
        with contextlib.suppress(RunedError):  # each daemon that it starts refuses to run, so that this only saves starts
            service.silence()
    if arguments.json:
        kept = {"kept_stopped_seconds": round(hold.remaining)} if hold else {}
        clients = [msgspec.structs.asdict(client) for client in others]
        print(json.dumps({"stopped": stopped, "seconds": round(passed, 3), "clients": clients} | kept))
        return ExitCode.OK
    tell(f"stopped the daemon of {paths.home} after {passed:.1f} s" if stopped else f"no daemon runs for {paths.home}")
    if hold is not None:
        tell(f"nobody starts it until {hold.until}; `runed ensure --anyway` does so earlier")
    elif service is not None:
        tell(service.after_stop)
    return ExitCode.OK


def _hold_time(value: str) -> float:
    """Parse the time of --for, in seconds."""
    if (number := duration(value)) > LONGEST:
        raise argparse.ArgumentTypeError(f"{value!r} is more than 720h (30 days), the longest time")
    return number


def _keep_stopped(settings: Settings, paths: Paths, seconds: float) -> Hold:
    """Forbid everybody to start a daemon, before the one that runs ends. Wait for a start that is under way."""
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    hold = write_hold(paths.hold, seconds)
    deadline = time.monotonic() + _SPAWN_SECONDS
    while LockFile(paths.spawn_lock).is_held() and time.monotonic() < deadline:
        time.sleep(_POLL)
    return hold


def _warn_of_others(health: Health, others: Sequence[Connected], grace: float, *, kept: bool) -> None:
    """Tell who works with the daemon, and that they will start it again."""
    if others:
        names = ", ".join(map(client_words, others))
        then = (
            "nobody starts it again before the time is over"
            if kept
            else ("each starts it again with its next call; `runed stop --for 10m` would keep it stopped")
        )
        complain(f"{len(others)} other program{'s are' if len(others) > 1 else ' is'} connected: {names}; {then}")
    if health.in_flight_requests:
        complain(f"{health.in_flight_requests} calls are in flight, and have {grace:g} s to end")


def _stop(paths: Paths, grace: float, *, force: bool, note: Callable[[Health], None]) -> bool:
    """Stop the daemon. Return whether there was one. `note` gets its last state, if it answers."""
    patience = grace + (0 if force else EXIT_SECONDS)
    process = find_process(paths)  # before the call, since the daemon may be gone after it
    with watched(paths, patience=None):
        try:
            with Asker(paths) as asker:
                note(asker.health(detailed=True))
                asker.shut_down(math.ceil(grace))
        except (DaemonUnavailableError, DeadlineExceededError):
            # A daemon that does not answer may be draining. A stuck daemon may still obey a signal.
            return stop_daemon(paths, process, timeout=patience, force=force)
        wait_for_end(paths, process, timeout=patience, force=force)
    return True
