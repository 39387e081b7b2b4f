"""`runed doctor`: look for what keeps runed from working here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.home_alone import home_and_mistake
from runed.errors import RunedError, SettingsError
from runed.lifecycle.asking import Health, Info, look
from runed.paths import Paths
from runed.settings import full_path

DESCRIPTION = """\
Look for what keeps runed from working on this machine: the engine and its
libraries, processor, devices, hashes, disk, memory, the home and its modes,
stale processes, other installations, proxy and network, port and token, limits,
clock, and the last errors of the log. A line a check; what is wrong has a
remedy. Nothing is changed, no daemon is started, and nothing is sent but
requests for the heads of the files that would be downloaded.
"""

EPILOG = """\
exit codes:
  0  all is well, or works in spite of warnings
  1  something is broken; the lines marked `failed` say what to do
  2  an option or the home cannot be used

with --json, standard output is a list of objects with check, state ("ok",
"warning" or "failed"), detail and remedy.

--bundle writes an archive for a report: findings, settings, state, and the log
of the daemon. It has no text, no vector, no key and no token, and names of
users are replaced. Look into it before you send it: `tar -xzf FILE`.

examples:
  runed doctor
  runed doctor --json | jq '.[] | select(.state != "ok")'
  runed doctor --bundle
"""

_MARKS = {"ok": "ok     ", "warning": "warning", "failed": "failed "}


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: a JSON list on standard output")
    parser.add_argument("--offline", action="store_true", help="leave the network out")
    parser.add_argument(
        "--bundle",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write an archive for a report, to a new file or into a directory (default: runed-doctor-TIME.tar.gz here)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run all checks and print what they found."""
    from runed.doctor import Finding, Patient, State, examine  # noqa: PLC0415 # 0.3 s that help does not spend
    from runed.doctor.bundle import write_bundle  # noqa: PLC0415 # as above
    from runed.doctor.finding import failed  # noqa: PLC0415 # as above

    settings, mistake = home_and_mistake()
    target = _target(arguments.bundle)
    paths = Paths(settings.home)
    info, health = _ask(paths)
    patient = Patient(settings, paths, info, health, announce=_announce)
    found: list[Finding] = []
    width = 14
    mistakes = [failed("settings", mistake, "correct it; the checks below go on without")] if mistake else []
    for finding in chain(mistakes, examine(patient, network=not arguments.offline)):
        found.append(finding)
        if not arguments.json:
            tell("\n".join(_lines(finding.check, finding.state.value, finding.detail, finding.remedy, width)))
    if arguments.json:
        print(json.dumps([asdict(finding) | {"state": finding.state.value} for finding in found], indent=2))
    if target is not None:
        names = write_bundle(target, patient, found)
        complain(f"wrote {target} with {', '.join(names)}; look into it before you send it")
    return ExitCode.FAILED if any(finding.state is State.FAILED for finding in found) else ExitCode.OK


def _target(bundle: str | None) -> Path | None:
    """Return the file of the archive, which takes the place of nothing; None if no archive is wanted.

    Raises:
        SettingsError: Something is there, or standard output is meant.
    """
    if bundle is None:
        return None
    if bundle == "-":
        raise SettingsError("--bundle writes a file, and not to standard output; name a new file, or leave the name out")
    path = full_path(bundle or ".")
    if path.is_dir():
        path /= time.strftime("runed-doctor-%Y%m%d-%H%M%S.tar.gz")
    if os.path.lexists(path):
        raise SettingsError(f"--bundle={path}: there is something already, and nothing is replaced; name a new file")
    return path


def _ask(paths: Paths) -> tuple[Info | None, Health | None]:
    try:
        return look(paths)
    except RunedError:
        return None, None


def _announce(sentence: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        complain(sentence)


def _lines(check: str, state: str, detail: str, remedy: str, width: int) -> Iterator[str]:
    yield f"{_MARKS[state]}  {check:<{width}} {detail}"
    if remedy:
        yield f"{'':<{9 + width}} -> {remedy}"
