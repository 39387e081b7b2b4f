"""`runed serve`: the daemon itself, in this process."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

from runed.daemon import inherited
from runed.settings import load_settings

DESCRIPTION = """\
Run the daemon in the foreground, with its log on standard error, until Ctrl-C,
SIGTERM or `runed stop`. Clients start one by themselves, so this is for service
managers and for looking at what it does. If another daemon serves this home
already, it says so and exits with 0.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    # A client starts the detached daemon with these options. They are of no use to people.
    parser.add_argument("--log-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until asked to stop."""
    if arguments.ready_fd is not None:  # a service manager, or a person, means what a daemon in the foreground inherits
        inherited.reset()
    settings = load_settings()
    gc.disable()  # until the daemon serves: nothing of what is imported is garbage, and looking for it delays the start
    # After the reset: numpy starts threads, which would keep what they inherited. After the settings: a mistake in them is told
    # half a second earlier.
    from runed.daemon import run as daemon  # noqa: PLC0415

    return daemon.run(settings, log_file=arguments.log_file, ready_fd=arguments.ready_fd)
