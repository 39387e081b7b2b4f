"""The program `runed`: parse the arguments and run the command that they name."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from runed.cli.boundary import EXIT_CODES_HELP, ExitCode, guarded
from runed.errors import quoted, sentence
from runed.suggesting import did_you_mean
from runed.version import __version__

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = {
    "embed": "turn texts into vectors",
    "rerank": "sort documents by their relevance to a query",
    "status": "show what the daemon is doing",
    "top": "watch the daemon work, live",
    "open": "show in a browser what the daemon does",
    "ensure": "make sure that a daemon runs, and say where",
    "stop": "let the daemon finish its work and exit",
    "serve": "run the daemon in the foreground",
    "service": "let systemd or launchd start the daemon",
    "logs": "show the daemon's or the engine's log",
    "install": "fetch engine and model ahead of time",
    "models": "list the models that there are",
    "show": "tell everything about a model",
    "pull": "fetch a model ahead of its first text",
    "add": "serve a model file of your own",
    "use": "choose the default model",
    "rm": "remove a model",
    "bench": "measure how fast it is, or find the engine settings that suit this machine",
    "doctor": "look for what keeps runed from working here",
    "explain": "tell what the reason of an error means",
    "completion": "let a shell complete commands, options and models",
    "help": "tell what a command does and takes",
    "version": "show the version",
}
"""The commands: each is the module `runed.cli.<name>` with `configure(parser)` and `run(arguments) -> exit code`."""

_OTHER_WORDS = {
    "list": "models",
    "ls": "models",
    "ps": "status",
    "start": "ensure",
    "daemon": "serve",
    "quit": "stop",
    "kill": "stop",
    "download": "pull",
    "remove": "rm",
    "delete": "rm",
    "encode": "embed",
    "log": "logs",
    "info": "status",
    "health": "status",
    "monitor": "top",
    "stats": "top",
    "ui": "open",
    "dashboard": "open",
    "up": "ensure",
    "down": "stop",
    "get": "pull",
    "fetch": "pull",
    "create": "add",
    "import": "add",
    "inspect": "show",
    "describe": "show",
    "default": "use",
    "setup": "install",
    "init": "install",
    "benchmark": "bench",
    "check": "doctor",
    "diagnose": "doctor",
}
"""Words for commands that other programs taught the user."""

_SETTINGS = "`runed status --settings` shows the settings; change config.json in the home, ~/.runed, and run `runed stop`"
_AGAIN = "run `runed stop`; the next call starts the daemon again, and `runed ensure` does so at once"
_NEWER = "install the newer package as you installed this one, and run `runed stop`; the next call starts the new daemon"

_ADVICE = {
    "uninstall": "run `runed stop` (and `runed service remove`, if you installed one), remove the home, ~/.runed, and "
    "`pip uninstall runed`",
    "restart": _AGAIN,
    "reload": _AGAIN,
    "run": '`runed embed --model NAME "text"` embeds with a model, and `runed use NAME` makes it the default',
    "config": _SETTINGS,
    "settings": _SETTINGS,
    "set": _SETTINGS,
    "update": _NEWER,
    "upgrade": _NEWER,
}
"""What to do in place of commands of other programs that no command here stands for."""

DESCRIPTION = "runed: one embedding model per machine, shared by all its processes."

EPILOG = f"""\
examples:
  runed embed "hello world"                  print the vector as JSON
  runed embed -f lines.txt -o vectors.npy    a vector a line, as a NumPy array
  runed status                               is it running, what does it cost?

`runed` alone shows this on a terminal. Without one it is `runed serve`, as
service managers expect.

{EXIT_CODES_HELP}
`runed COMMAND --help` tells more. Files and settings live in
~/.runed, or where RUNED_HOME points.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse a command line. A shell may have put the name of a file in the place of an option.

        A line of usage and one sentence remain in sight. All options, which argparse would show, are in the help.
        """
        usage = " ".join(
            [self.prog, "[OPTION ...]", *(_words(action) for action in self._actions if not action.option_strings)]
        )
        told = sentence(message)
        self.exit(2, f"usage: {usage}\n{self.prog}: {told} (`{self.prog} --help` tells more)\n")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. argparse would keep silent about a full disk, and the command would not fail."""
        (sys.stdout if file is None else file).write(self.format_help())

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Refuse arguments that the command does not have, and name the option that the first one may stand for."""
        before = takewhile("--".__ne__, unknown)  # what stands behind is no option
        option = next((word.partition("=")[0] for word in before if word.startswith("-") and word != "-"), "")
        if option:
            self.error(f"there is no option {option}{did_you_mean(option, self._option_string_actions)}")
        self.error(
            f"there is no argument {quoted(unknown[0])}" if len(unknown) == 1 else f"there are no arguments {' '.join(unknown)}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: The command line without the program's name; None means that of the process.

    Returns:
        The exit code.
    """
    gc.disable()  # nothing of what is imported is garbage, and looking for it takes a tenth of a short command's time
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments) or _default()))


def _default() -> list[str]:
    """Return the command line that none stands for: help for a person, the daemon for a program that starts one."""
    return ["--help"] if sys.stdout.isatty() else ["serve"]


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could stand at the cursor
        return _complete(os.environ.get("COMP_LINE", ""))
    # The options before a command take no values, so the first word is the command.
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser, commands, module = _parsers(chosen)
    if chosen and module is None:
        parser.error(_no_command(chosen))
    parsed, unknown = parser.parse_known_args(arguments)
    if parsed.version:
        print(f"runed {__version__}")
        return ExitCode.OK
    if unknown and module:
        # argparse gives a command all its words at the first one, and has none left for those behind an option.
        own = arguments[arguments.index(chosen) + 1 :]
        parsed, unknown = commands[chosen].parse_known_intermixed_args(own)
    if unknown:
        (commands[chosen] if module else parser).refuse(unknown)
    if module is None:
        parser.error(f"there is no command, but {', '.join(COMMANDS)}")
    gc.freeze()  # what was imported stays to the end
    gc.enable()
    code: int = module.run(parsed)
    return code


def _parsers(chosen: str) -> tuple[_Parser, dict[str, _Parser], ModuleType | None]:
    """Return the parser of the program, those of its commands, and the module of the chosen command; None if there is none."""
    parser = _Parser(
        prog="runed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands: dict[str, _Parser] = {}
    module = None
    for name, summary in COMMANDS.items():
        commands[name] = subparsers.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == chosen:
            # Only the chosen command's module is imported, since others import libraries that it does not need.
            module = importlib.import_module(f"runed.cli.{name}")
            module.configure(commands[name])
    return parser, commands, module


def _no_command(name: str) -> str:
    """Return the refusal of a command that does not exist, with what to do in place of it."""
    if advice := _ADVICE.get(name):
        instead = f": {advice}"
    elif other := _OTHER_WORDS.get(name):
        instead = f"; did you mean {other}?"
    else:
        instead = did_you_mean(name, COMMANDS) or f", but {', '.join(COMMANDS)}"
    return f"there is no command {quoted(name)}{instead}"


def show_help(command: str) -> None:
    """Print the help of a command; "" for that of the program."""
    parser, commands, module = _parsers(command)
    if command and module is None:
        commands["help"].error(_no_command(command))
    (commands[command] if command else parser).print_help()


def _complete(line: str) -> int:
    """Print what could stand at the cursor of a command line, by the protocol of the script of `runed completion`."""
    import argcomplete  # noqa: PLC0415 # 15 ms that a command does not spend

    words = [word for word in line.split()[1:] if not word.startswith("-")]
    parser, _, _ = _parsers(words[0] if words else "")
    argcomplete.autocomplete(parser)  # it ends the process
    return 0


def _words(action: argparse.Action) -> str:
    """Return an argument without a name as the usage shows it."""
    name = str(action.metavar or action.dest)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "A...": f"{name} ..."}.get(str(action.nargs), name)
