"""`runed install`: downloads engine and model ahead of the first start."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runed.cli.boundary import ExitCode, complain, tell, tell_json
from runed.cli.options import add_json
from runed.cli.progress import ProgressDisplay
from runed.domain.engines import ONNX_RUNTIME
from runed.files import write_atomically
from runed.locking import LockFile
from runed.paths import Paths, ensure_home, ensure_private_dir
from runed.settings import Settings, load_settings

if TYPE_CHECKING:
    from runed.bootstrap import Installation, Progress
    from runed.domain.model_spec import ModelSpec

DESCRIPTION = """\
Download and verify the engine and the model now, so that the first start needs
no network. Put the launcher bin/runed into RUNED_HOME, where clients in other
languages find it. Files that are there already are verified and kept, and an
interrupted download is resumed. Works with or without a running daemon.
"""

EPILOG = """\
examples:
  runed install
  RUNED_MODEL_VARIANT=qwen3-embedding-0.6b.f16 runed install    another model
  runed install --reset && runed stop    try again what failed before

with --json, standard output is one JSON object: engine, device, model, launcher
and warnings; device and model are missing if the engine is on another machine
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add_json(parser)
    parser.add_argument("--reset", action="store_true", help="forget which devices and engines failed on this machine")


def run(arguments: argparse.Namespace) -> int:
    """Install, and print the paths of all parts."""
    settings, paths = open_home("install.log")
    if arguments.reset:
        for file in (paths.device_failures, paths.engine_comparisons):
            file.unlink(missing_ok=True)
    if url := _url_of_default(settings):
        facts = {"engine": f"on another machine, {url}", "launcher": str(_write_launcher(paths))}
        _tell(facts, [], as_json=arguments.json)
        return ExitCode.OK
    with ProgressDisplay(keep=True) as display:
        installation = install_shown(settings, paths, display)
    launcher = _write_launcher(paths)
    warnings = list(installation.warnings)
    if installation.llama_server is None:
        from runed.backends.onnx.availability import missing  # noqa: PLC0415 # most homes have a llama-server

        if absent := missing():
            warnings.append(f"the model cannot be served yet: {absent}")
    facts = {
        "engine": str(installation.llama_server or ONNX_RUNTIME),
        "device": "the processors" if installation.device.is_cpu else str(installation.device),
        "model": str(installation.model),
        "launcher": str(launcher),
    }
    _tell(facts, warnings, as_json=arguments.json)
    return ExitCode.OK


def _tell(facts: dict[str, str], warnings: list[str], *, as_json: bool) -> None:
    """Print what is installed."""
    if as_json:
        tell_json(facts | {"warnings": warnings})
        return
    for warning in warnings:
        complain(warning)
    tell("\n".join(f"{name:<9} {value}" for name, value in facts.items()))


def open_home(log: str = "") -> tuple[Settings, Paths]:
    """Prepare the home as the daemon does. Return the settings and the paths.

    Args:
        log: The name of the log file of this command, or "" for none. Two processes cannot rotate one file.
    """
    settings = load_settings()
    os.umask(0o077)
    paths = Paths(settings.home)
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    ensure_private_dir(paths.logs)
    if log:
        from runed.log import configure_logging  # noqa: PLC0415 # 90 ms, after what may refuse the home

        configure_logging(paths.logs / log)
    return settings, paths


def install_shown(settings: Settings, paths: Paths, display: ProgressDisplay, wanted: ModelSpec | None = None) -> Installation:
    """Install the engine and a model, by default the default one, and show the progress."""
    import asyncio  # noqa: PLC0415 # with the next two, 200 ms that `runed install --help` does not spend

    from runed.backends.gguf import check_model  # noqa: PLC0415
    from runed.bootstrap import install  # noqa: PLC0415

    def report(progress: Progress) -> None:
        display.update(progress.phase.value, progress.bytes_done, progress.bytes_total, detail=progress.message)

    try:
        return asyncio.run(install(settings, paths, report=report, check_model=check_model, wanted=wanted))
    except KeyboardInterrupt:
        display.drop()
        complain(_after_interrupt(paths))
        raise


def _after_interrupt(paths: Paths) -> str:
    """Return what becomes of a download that the user has interrupted."""
    from runed.client.progress import GOES_ON  # noqa: PLC0415 # nothing of this is needed without Ctrl-C
    from runed.lifecycle.spawn import find_process  # noqa: PLC0415

    lock = LockFile(paths.install_lock)
    if not lock.is_held():
        return "what was fetched is kept, and the same command goes on from there"
    daemon = find_process(paths)
    return GOES_ON if daemon and daemon.pid == lock.holder() else f"process {lock.holder()} goes on with the installation"


def _url_of_default(settings: Settings) -> str:
    """Return the URL of the engine of the default model, if that is on another machine; otherwise ""."""
    from runed.bootstrap.catalog import own_default  # noqa: PLC0415 # as above

    default = own_default(settings)
    return default.remote.url if default is not None and default.remote is not None else ""


def _write_launcher(paths: Paths) -> Path:
    """Write a script that starts this installation of runed, and return its path."""
    ensure_private_dir(paths.bin)
    # -P: otherwise Python would import a `runed` of the current directory.
    script = f'#!/bin/sh\n# Written by `runed install`.\nexec {shlex.quote(sys.executable)} -P -m runed "$@"\n'
    launcher = paths.bin / "runed"
    write_atomically(launcher, script.encode(), mode=0o700)
    return launcher
