"""`runed explain`: tell what the reason of an error means, and what to do."""

from __future__ import annotations

import argparse
import difflib
import json
from dataclasses import asdict

from runed.cli.boundary import ExitCode, tell
from runed.errors import SettingsError, quoted
from runed.reasons import REASONS, Reason, find

DESCRIPTION = """\
Tell what the reason of an error means, and what to do. Without a reason, list
all of them. Reasons are the stable names of errors, such as QUEUE_FULL: the
clients have them as `reason`, and docs/protocol.md has the table of those that
the daemon sends.
"""

EPILOG = """\
examples:
  runed explain                  all reasons, a line each
  runed explain text_too_long
  runed explain --json QUEUE_FULL
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("reason", nargs="?", metavar="REASON", help="the reason, in letters of any case")
    parser.add_argument("--json", action="store_true", help="for programs: a JSON list of objects on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Print the meaning of a reason, or all reasons."""
    rows = _rows(arguments.reason) if arguments.reason else list(REASONS)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif arguments.reason:
        tell("\n\n".join(map(_in_full, rows)))
    else:
        width = max(len(row.name) for row in rows)
        tell("\n".join(f"{row.name:<{width}}  {row.when}" for row in rows))
    return ExitCode.OK


def _rows(name: str) -> list[Reason]:
    if rows := find(name):
        return rows
    near = difflib.get_close_matches(name.upper(), {row.name for row in REASONS}, n=1)
    hint = f"did you mean {near[0]}?" if near else "`runed explain` lists all of them"
    raise SettingsError(f"{quoted(name)} is no reason that this version knows; {hint}")


def _in_full(row: Reason) -> str:
    facts = {
        "when": row.when,
        "do": row.remedy,
        "code": row.code or "none: no call over the socket gets it",
        "metadata": row.metadata.replace("`", "") or "none",
        "more": f"docs/protocol.md#{row.section or 'errors'}",
    }
    return "\n".join([row.name, *(f"  {name:<9} {value}" for name, value in facts.items())])
