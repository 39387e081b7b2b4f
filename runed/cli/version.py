"""`runed version`: the version."""

from __future__ import annotations

import argparse

from runed.cli.boundary import ExitCode, tell, tell_json
from runed.cli.options import add_json
from runed.version import __version__

EPILOG = """\
examples:
  runed version
  runed version --json       {"version": "0.1.0"}
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Show the version of this runed; `runed status` shows that of the running daemon."
    parser.epilog = EPILOG
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the version."""
    if arguments.json:
        tell_json({"version": __version__})
    else:
        tell(f"runed {__version__}")
    return ExitCode.OK
