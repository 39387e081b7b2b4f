"""Run the benchmarks and print their tables: `python -m benchmarks --help`.

A whole run writes docs/benchmarks.md and its pictures, and keeps the results that they are made of.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.bulk import measure_bulk, measure_cancel, measure_long, measure_reindex
from benchmarks.company import measure_company
from benchmarks.concurrency import client_rows, measure_curves
from benchmarks.cost import measure_cost
from benchmarks.endurance import measure_calls, measure_memory
from benchmarks.lab import Lab, lab, say
from benchmarks.lifecycle import measure_restart, measure_sleep, measure_start
from benchmarks.mixed import measure_beside_another_model, measure_interactive_beside_bulk
from benchmarks.models import MINILM, MINILM_ONNX, MODELS, ensure
from benchmarks.peers import PEERS_HELP, measure_peers
from benchmarks.ranking import measure_rerank
from benchmarks.report import print_tables, results, section, write_report
from benchmarks.results import RESULTS, Curves, Results, Row, load, store
from benchmarks.single import measure_cached, measure_single
from benchmarks.soak import measure_soak
from benchmarks.turns import measure_two_models

Measure = Callable[[Lab], list[Row]]
"""A function that makes one measurement and returns its rows."""

_EVERY_MODEL: Mapping[str, Measure] = {
    "single": measure_single,
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
    "two-models": measure_two_models,
    "beside-another": measure_beside_another_model,
    "rerank": measure_rerank,
}

_OTHER_ENGINE: Mapping[str, Measure] = {"peers": measure_peers}

_QUICK: Mapping[str, Measure] = {
    "calls": lambda lab: measure_calls(lab, calls=1000),
    "cost": lambda lab: measure_cost(lab, calls=800),
    "soak": lambda lab: measure_soak(lab, seconds=10),
    "two-models": lambda lab: measure_two_models(lab, seconds=20),
}
"""Short forms of the measurements whose length does not depend on `Effort`."""

_CLIENTS = "clients"
"""The measurement that gives a picture, too."""


def main() -> int:
    """Measure, print the tables and write the report. Return 1 if a bar was missed, otherwise 0."""
    names = [_CLIENTS, *_EVERY_MODEL, *_SMALL_MODEL, *_OTHER_ENGINE]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure runed against raw llama-server.")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--model", choices=[model.key for model in MODELS], help="measure only this one")
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; write the page and the pictures of the last run anew"
    )
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help=PEERS_HELP)
    arguments = parser.parse_args()
    if arguments.draw:
        write_report(load())
        return 0
    began = time.monotonic()
    measured = _measure_models(names, arguments)
    print_tables(measured.sections)
    say(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if arguments.quick or arguments.model or set(arguments.only) != set(names):
        say("docs/benchmarks.md and its pictures stay as they are: this was not a whole run")
    else:
        store(measured)
        write_report(measured)
        say(f"written: docs/benchmarks.md, its pictures, and {RESULTS.name}")
    return 0 if all(row.passed for section in measured.sections for row in section.rows) else 1


def _measure_models(names: list[str], arguments: argparse.Namespace) -> Results:
    sections = []
    for model in MODELS:
        others = {MINILM.key: {*_OTHER_ENGINE}, MINILM_ONNX.key: {*_SMALL_MODEL}}.get(
            model.key, {*_SMALL_MODEL, *_OTHER_ENGINE}
        )
        everything = [name for name in names if name not in others]
        chosen = [name for name in everything if name in arguments.only]
        if not chosen or arguments.model not in {None, model.key}:
            continue
        ensure(model)
        with lab(model, model.effort.quick() if arguments.quick else model.effort) as laboratory:
            laboratory.peers = arguments.peers
            curves = _measure_curves(laboratory) if _CLIENTS in chosen else None
            rows = [
                *(client_rows(curves, bar=model.bars.clients) if curves else []),
                *_measure(laboratory, chosen, quick=arguments.quick),
            ]
            sections.append(section(model, laboratory.argv, rows, curves))
    return results(sections)


def _measure_curves(laboratory: Lab) -> Curves:
    say(f"{laboratory.model.key}: {_CLIENTS}")
    return measure_curves(laboratory)


def _measure(laboratory: Lab, names: list[str], *, quick: bool) -> Iterator[Row]:
    """Yield the rows of the chosen measurements."""
    measures = {**_EVERY_MODEL, **_SMALL_MODEL, **_OTHER_ENGINE, **(_QUICK if quick else {})}
    for name in names:
        if name == _CLIENTS:
            continue
        say(f"{laboratory.model.key}: {name}")
        for row in measures[name](laboratory):
            say(f"  {row.name}: {row.runed} / {row.raw} / {row.difference} ({row.bar}) {'ok' if row.passed else 'MISSED'}")
            yield row


if __name__ == "__main__":
    sys.exit(main())
