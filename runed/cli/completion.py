"""`runed completion`: what a shell needs to complete the words of a command line."""

from __future__ import annotations

import argparse

from runed.cli.boundary import ExitCode

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = """\
Print the script with which a shell completes the commands of runed, their
options, the names of models and files. The script asks `runed` itself at each
Tab, so it stays right after an upgrade.
"""

EPILOG = """\
examples:
  eval "$(runed completion bash)"     a line for ~/.bashrc
  eval "$(runed completion zsh)"      a line for ~/.zshrc, after `compinit`
  runed completion fish | source      a line for ~/.config/fish/config.fish
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode  # noqa: PLC0415 # 15 ms that no other command spends

    print(shellcode(["runed"], shell=arguments.shell))
    return ExitCode.OK
