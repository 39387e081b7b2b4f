"""Fuzz the daemon and all readers: `python -m tests.fuzz --inputs 200000 --seed 1`. Exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.files import FILE_TARGETS
from tests.fuzz.outcome import Plan, share
from tests.fuzz.run import fuzz, replay, save, say
from tests.fuzz.wire import WIRE_TARGETS

FINDINGS, GROWN = Path("build/fuzz/findings"), Path("build/fuzz/corpus")


def main() -> int:
    """Run, and print the summary."""
    targets = [*FILE_TARGETS, *WIRE_TARGETS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Feed broken inputs to the daemon and all readers."
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="the number of inputs of all targets (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="decides the inputs (default: 1)")
    parser.add_argument(
        "--only", nargs="+", choices=targets, default=targets, metavar="TARGET", help=f"of: {', '.join(targets)}"
    )
    parser.add_argument("--fresh", action="store_true", help="leave out the inputs that earlier runs found on this machine")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one finding again: build/fuzz/findings/TARGET/NAME")
    arguments = parser.parse_args()
    if arguments.replay:
        what = replay(arguments.replay.parent.name, arguments.replay.read_bytes())
        say(what or "no finding")
        return 1 if what else 0
    grown = None if arguments.fresh else GROWN
    outcome = fuzz(Plan(arguments.seed, share(arguments.inputs, arguments.only), grown), settle=30.0)
    save(outcome, FINDINGS, GROWN)
    say("\n".join(outcome.lines()))
    return 1 if outcome.findings or outcome.late() or outcome.waits.failures else 0


if __name__ == "__main__":
    sys.exit(main())
