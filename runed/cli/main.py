"""The program `runed`: parse the arguments and run the command that they name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from runed.cli.boundary import EXIT_CODES_HELP, guarded
from runed.errors import printable
from runed.version import __version__

COMMANDS = {
    "serve": "run the daemon in the foreground; `runed` alone does the same",
    "embed": "turn texts into vectors",
    "rerank": "sort documents by their relevance to a query",
    "ensure": "make sure that a daemon runs, and say where",
    "status": "show what the daemon is doing",
    "top": "watch the daemon work, live",
    "open": "show in a browser what the daemon does",
    "stop": "let the daemon finish its work and exit",
    "service": "let systemd or launchd start the daemon",
    "install": "fetch engine and model ahead of time",
    "models": "list the models that there are",
    "show": "tell everything about a model",
    "pull": "fetch a model ahead of its first text",
    "add": "serve a model file of your own",
    "use": "choose the default model",
    "rm": "remove a model",
    "bench": "measure how fast it is, or find the engine settings that suit this machine",
    "logs": "show the daemon's or the engine's log",
    "doctor": "look for what keeps runed from working here",
    "explain": "tell what the reason of an error means",
    "version": "show the version",
}
"""The commands: each is the module `runed.cli.<name>` with `configure(parser)` and `run(arguments) -> exit code`."""

DESCRIPTION = "runed: one embedding model per machine, shared by all its processes."

EPILOG = f"""\
examples:
  runed embed "hello world"                  print the vector as JSON
  runed embed -f lines.txt -o vectors.npy    a vector a line, as a NumPy array
  runed status                               is it running, what does it cost?

{EXIT_CODES_HELP}
`runed COMMAND --help` tells more. Files and settings live in
~/.runed, or where RUNED_HOME points.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse a command line. A shell may have put the name of a file in the place of an option."""
        super().error(printable(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: The command line without the program's name; None means that of the process.

    Returns:
        The exit code.
    """
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments) or ["serve"]))


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="runed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"runed {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # The options before a command take no values, so the first word is the command.
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    module = None
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == chosen:
            # Only the chosen command's module is imported, since others import libraries that it does not need.
            module = importlib.import_module(f"runed.cli.{name}")
            module.configure(subparser)
    parsed = parser.parse_args(arguments)
    assert module is not None
    code: int = module.run(parsed)
    return code
