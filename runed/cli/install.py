"""`runed install`: everything that would be fetched at the first start, ahead of it."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from pathlib import Path

from runed.backends.llama import check_model
from runed.bootstrap import Progress, install
from runed.cli.boundary import ExitCode, complain
from runed.cli.progress import ProgressDisplay
from runed.files import write_atomically
from runed.log import configure_logging
from runed.paths import Paths, ensure_private_dir
from runed.settings import load_settings

DESCRIPTION = """\
Fetch and verify the engine and the model now, so that the first start needs no
network, and put the launcher bin/runed into RUNED_HOME, where clients in other
languages find it. What is there already is verified and kept; an interrupted
download goes on where it stopped. Runs with or without a daemon.
"""

EPILOG = """\
examples:
  runed install
  RUNED_MODEL_VARIANT=qwen3-embedding-0.6b.f16 runed install    another model
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG


def run(_arguments: argparse.Namespace) -> int:
    """Install, and say what is where."""
    settings = load_settings()
    os.umask(0o077)  # as the daemon, which writes the same files
    paths = Paths(settings.home)
    ensure_private_dir(paths.home)
    ensure_private_dir(paths.logs)
    # In a file of its own, as two processes cannot rotate one file; the user sees the progress instead.
    configure_logging(paths.logs / "install.log")
    with ProgressDisplay(keep=True) as display:

        def report(progress: Progress) -> None:
            display.update(progress.phase.value, progress.bytes_done, progress.bytes_total, detail=progress.message)

        installation = asyncio.run(install(settings, paths, report=report, check_model=check_model))
    launcher = _write_launcher(paths)
    for warning in installation.warnings:
        complain(warning)
    print(f"engine    {installation.llama_server}")
    print(f"model     {installation.model}")
    print(f"launcher  {launcher}")
    return ExitCode.OK


def _write_launcher(paths: Paths) -> Path:
    """Write a script that starts this very installation of runed, whatever is on PATH, and give its path.

    `-P` keeps Python from importing a `runed` of the directory that the script happens to be called in.
    """
    ensure_private_dir(paths.bin)
    script = f'#!/bin/sh\n# Written by `runed install`.\nexec {shlex.quote(sys.executable)} -P -m runed "$@"\n'
    launcher = paths.bin / "runed"
    write_atomically(launcher, script.encode(), mode=0o700)
    return launcher
