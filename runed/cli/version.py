"""`runed version`: the version."""

from __future__ import annotations

import argparse

from runed.cli.boundary import ExitCode
from runed.version import __version__


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Show the version of this runed; `runed status` shows that of the running daemon."


def run(_arguments: argparse.Namespace) -> int:
    """Print the version."""
    print(f"runed {__version__}")
    return ExitCode.OK
