"""Run the benchmarks, print their tables, and write them to docs/benchmarks.md: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks.bulk import measure_bulk, measure_cancel, measure_long, measure_reindex
from benchmarks.company import measure_company
from benchmarks.concurrency import measure_clients, measure_curves
from benchmarks.cost import measure_cost
from benchmarks.endurance import measure_calls, measure_memory
from benchmarks.lab import Lab, lab, say
from benchmarks.lifecycle import measure_restart, measure_sleep, measure_start
from benchmarks.mixed import measure_interactive_beside_bulk
from benchmarks.models import MINILM, MODELS, ensure
from benchmarks.report import Row, Section, print_tables, write_report
from benchmarks.single import measure_cached, measure_single
from benchmarks.soak import measure_soak

Measure = Callable[[Lab], list[Row]]
"""A function that makes one measurement and returns its rows."""

_EVERY_MODEL: Mapping[str, Measure] = {
    "single": measure_single,
    "clients": measure_clients,
    "bulk": measure_bulk,
    "long": measure_long,
    "mixed": measure_interactive_beside_bulk,
    "company": measure_company,
    "restart": measure_restart,
}

_SMALL_MODEL: Mapping[str, Measure] = {
    "start": measure_start,
    "calls": measure_calls,
    "sleep": measure_sleep,
    "cached": measure_cached,
    "cost": measure_cost,
    "reindex": measure_reindex,
    "cancel": measure_cancel,
    "memory": measure_memory,
    "soak": measure_soak,
}

_QUICK: Mapping[str, Measure] = {
    "calls": lambda lab: measure_calls(lab, calls=1000),
    "cost": lambda lab: measure_cost(lab, calls=800),
    "soak": lambda lab: measure_soak(lab, seconds=10),
}
"""Short forms of the measurements whose length does not depend on `Effort`."""

_CURVES = "curves"


def main() -> int:
    """Measure, print the tables and write the report. Return 1 if a bar was missed, otherwise 0."""
    names = [*_EVERY_MODEL, *_SMALL_MODEL, _CURVES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure runed against raw llama-server.")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--model", choices=[model.key for model in MODELS], help="measure only this one")
    arguments = parser.parse_args()
    whole = not arguments.quick and arguments.only == names and not arguments.model
    began = time.monotonic()
    sections = []
    for model in MODELS:
        if arguments.model not in (None, model.key):
            continue
        chosen = [name for name in names if name in arguments.only and (name in _EVERY_MODEL or model is MINILM)]
        if not chosen:
            continue
        ensure(model)
        with lab(model, model.effort.quick() if arguments.quick else model.effort) as laboratory:
            sections.append(
                Section(model, laboratory.argv, list(_measure(laboratory, chosen, quick=arguments.quick, keep=whole)))
            )
    print_tables(sections)
    say(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if whole:
        write_report(sections)
    return 0 if all(row.passed for section in sections for row in section.rows) else 1


def _measure(laboratory: Lab, names: list[str], *, quick: bool, keep: bool) -> Iterator[Row]:
    """Return the rows of the chosen measurements, and draw the curves if they are among them."""
    measures = {**_EVERY_MODEL, **_SMALL_MODEL, **(_QUICK if quick else {})}
    for name in names:
        say(f"{laboratory.model.key}: {name}")
        if name == _CURVES:
            curves = measure_curves(laboratory)
            if keep:
                from benchmarks.plot import plot_curves  # noqa: PLC0415 # matplotlib takes seconds to import

                plot_curves(curves)
            continue
        for row in measures[name](laboratory):
            say(f"  {row.name}: {row.runed} / {row.raw} / {row.difference} ({row.bar}) {'ok' if row.passed else 'MISSED'}")
            yield row


if __name__ == "__main__":
    sys.exit(main())
