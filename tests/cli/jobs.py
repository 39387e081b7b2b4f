"""Runs jobs of `runed embed` with the stand-in of `stand_in.py`, as a process or, faster, inside the test."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from runed.cli import embed
from tests.cli.stand_in import Options, StandIn
from tests.support import clean_environment

PROGRAM = Path(__file__).with_name("stand_in.py")


class WrongUsageError(Exception):
    """An error with which argparse would exit."""


def here(*arguments: str | os.PathLike[str], options: Options | None = None) -> int:
    """Run `runed embed` in this process. Raise the error that a user would see as a message."""
    parser = argparse.ArgumentParser()
    embed.configure(parser)
    parsed = parser.parse_args([os.fspath(argument) for argument in arguments])

    def refuse(message: str) -> None:
        raise WrongUsageError(message)

    parsed.usage_error = refuse
    original = vars(embed)["connect"]
    vars(embed)["connect"] = lambda _display, _model: StandIn(options or Options())
    try:
        return embed.run(parsed)
    finally:
        vars(embed)["connect"] = original


def command(*arguments: str | os.PathLike[str], options: Options | None = None) -> list[str | os.PathLike[str]]:
    """Return the command line of `runed embed` with a stand-in."""
    return [sys.executable, PROGRAM, msgspec.json.encode(options or Options()).decode(), "embed", *arguments]


def start(*arguments: str | os.PathLike[str], options: Options | None = None) -> subprocess.Popen[bytes]:
    """Start `runed embed` as a process."""
    return subprocess.Popen(
        command(*arguments, options=options),
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(
    *arguments: str | os.PathLike[str], options: Options | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `runed embed` as a process to its end."""
    process = start(*arguments, options=options)
    stdout, stderr = process.communicate(stdin, timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
