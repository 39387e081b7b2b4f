"""Run chaos: `python -m tests.chaos --seconds 1800 --seed 1`. The exit code is 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.run import build_drivers, run_chaos


def main() -> int:
    """Run, and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Break things around a daemon, and check it.")
    parser.add_argument("--seconds", type=float, default=60.0, help="the time for faults (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="decides the faults (default: 1)")
    arguments = parser.parse_args()
    report = run_chaos(arguments.seed, arguments.seconds, build_drivers(Path("build/chaos")))
    sys.stdout.write("\n" + "\n".join(report.lines()) + "\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
