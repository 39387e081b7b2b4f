"""`runed help`: the same as `--help`, as a word."""

from __future__ import annotations

import argparse

from runed.cli.boundary import ExitCode
from runed.cli.completing import completes
from runed.cli.main import COMMANDS, show_help

DESCRIPTION = "Tell what runed does, or what one of its commands does and takes."

EPILOG = """\
examples:
  runed help
  runed help embed           the same as `runed embed --help`
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    about = parser.add_argument("about", nargs="?", default="", metavar="COMMAND", help="the command (default: runed itself)")
    completes(about, lambda: COMMANDS)


def run(arguments: argparse.Namespace) -> int:
    """Print the help."""
    show_help(arguments.about)
    return ExitCode.OK
