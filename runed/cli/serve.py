"""`runed serve`: the daemon itself, in this process."""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from pathlib import Path

from runed.daemon import inherited
from runed.errors import RunedError, printable
from runed.log import is_for_people
from runed.settings import Settings, load_settings
from runed.version import __version__

DESCRIPTION = """\
Run the daemon in the foreground, with its log on standard error, until Ctrl-C,
SIGTERM or `runed stop`. Clients start one by themselves, so this is for service
managers and for looking at what it does. If another daemon serves this home
already, it says so and exits with 0. `runed` alone does the same where its
standard output is no terminal.

The log is for people on a terminal, and JSON elsewhere; RUNED_LOG=json or text
decides otherwise. RUNED_LOG_LEVEL=warning leaves out what is as it should be.
"""

EPILOG = """\
examples:
  runed serve
  RUNED_LOG=json runed serve 2> daemon.log
  RUNED_HTTP=127.0.0.1:8321 runed serve      with the APIs of OpenAI and Ollama
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    # A client starts the detached daemon with these options. They are of no use to people.
    parser.add_argument("--log-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until asked to stop."""
    if arguments.ready_fd is not None:  # a service manager, or a person, means what a daemon in the foreground inherits
        inherited.reset()
    with warnings.catch_warnings(record=True) as noted:  # the log tells them, which is not configured yet
        settings = load_settings()
    if arguments.log_file is None and is_for_people(settings.log):
        _greet(settings)
    gc.disable()  # until the daemon serves: nothing of what is imported is garbage, and looking for it delays the start
    # After the reset: numpy starts threads, which would keep what they inherited. After the settings: a mistake in them is told
    # half a second earlier.
    from runed.daemon import run as daemon  # noqa: PLC0415

    notices = [str(notice.message) for notice in noted]
    return daemon.run(settings, log_file=arguments.log_file, ready_fd=arguments.ready_fd, notices=notices)


def _greet(settings: Settings) -> None:
    """Say what runs, where, with which model, and how to stop it."""
    print(printable(f"runed {__version__} of {settings.home}; Ctrl-C or `runed stop` ends it"), file=sys.stderr)
    if model := _default_model(settings):
        print(printable(f"the default model is {model}; `runed models` lists all"), file=sys.stderr)


def _default_model(settings: Settings) -> str:
    """Return the name of the default model; "" if it cannot be told yet. What is wrong, the daemon tells itself."""
    from runed.bootstrap.catalog import build_catalog, own_default  # noqa: PLC0415 # the daemon needs them next
    from runed.bootstrap.manifest import manifest_source, read_local_manifest  # noqa: PLC0415 # as above

    try:
        if (own := own_default(settings)) is not None:
            return own.name
        source = manifest_source(settings)
        return "" if source.is_url else build_catalog(settings, read_local_manifest(source)).default.name
    except RunedError:
        return ""
