"""`rundemo [TEXT]`: embed one text, to see that runed works."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from runed.cli.boundary import EXIT_CODES_HELP, ExitCode, guarded, tell
from runed.cli.progress import ProgressDisplay

DEFAULT_TEXT = "The quick brown fox jumps over the lazy dog"

SHOWN_VALUES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Arguments and exit code are those of `runed.cli.main.main`."""
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rundemo",
        description="Embed one text, starting the daemon if none runs, and show the answer.",
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", nargs="?", default=DEFAULT_TEXT, metavar="TEXT", help=f"default: {DEFAULT_TEXT!r}")
    text = parser.parse_args(arguments).text

    from runed.cli.waiting import connect  # noqa: PLC0415 # nothing may be imported before `guarded` has refused Windows

    with ProgressDisplay() as display, connect(display) as client:
        vector = client.embed(text)
        info = client.info()
    norm = math.sqrt(sum(float(value) ** 2 for value in vector))
    tell(f"version    {info.daemon_version}")
    tell(f"model      {info.model_name}")
    tell(f"identity   {info.model_identity}")
    tell(f"dimension  {len(vector)}")
    tell(f"vector     {' '.join(f'{value:+.6f}' for value in vector[:SHOWN_VALUES])} ...")
    tell(f"norm       {norm:.6f}")
    print("OK")
    return ExitCode.OK
