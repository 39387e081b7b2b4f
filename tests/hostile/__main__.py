"""Make all attacks: `python -m tests.hostile [--only ITEM ...]`. The exit code is 1 if a bar was missed."""

from __future__ import annotations

import argparse
import sys
import time

from tests.hostile.arena import ATTACKS
from tests.hostile.table import HEAD, row, tried


def main() -> int:
    """Attack, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description="Attack daemons, and hold the results to bars."
    )
    parser.add_argument("--only", nargs="+", metavar="ITEM", help="numbers of items, or words of the names of attacks")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    arguments = parser.parse_args()
    missed = 0
    began = time.monotonic()
    sys.stdout.write(f"{HEAD}\n")
    for it in sorted(ATTACKS, key=lambda one: int(one.item)):
        wanted = not arguments.only or any(
            only == it.item or (only in it.name and not only.isdigit()) for only in arguments.only
        )
        if not wanted or (arguments.quick and it.slow):
            continue
        started = time.monotonic()
        measured = tried(it)
        missed += measured.ok is False
        sys.stdout.write(row(it, measured, time.monotonic() - started) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{missed} bars missed, {time.monotonic() - began:.0f} s\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
