"""Report of the measurements, for a terminal and for docs/benchmarks.md with its pictures."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.models import Model
from benchmarks.picture import draw
from benchmarks.results import Curves, Results, Row, Section

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTES = Path(__file__).with_name("notes.md")
"""Hand-written remarks on the figures."""

INTRODUCTION = """\
`make bench` writes this page. It compares runed in its default profile with raw `llama-server`: the same program with the same
model and flags, except for the number of slots. Both take turns in one run, so that a ratio means more than an absolute time.

A separate process makes the load. Each client has one thread and one kept UNIX connection, and sends its next text as soon as
it has the vector of the last one. The client of raw is Python's `http.client`; it decodes base64 vectors to numpy. The client
of runed is the sync client of the Python package. No text occurs twice, except where repetition is measured. Percentiles are
over all calls of a row or of a point. Rates are medians of slices in which raw and runed take turns. Trials find raw's best
setting first; it is then measured again in those slices.

The pictures show the slices of the table. A number of clients that is not in the table has half as many.\
"""


def section(model: Model, argv: Sequence[str], rows: Sequence[Row], curves: Curves | None) -> Section:
    """Return the results of one model.

    Args:
        model: The model.
        argv: The command line of the daemon's engine.
        rows: The rows of its table.
        curves: The figures by the number of clients.
    """
    effort = model.effort
    slices = f"{effort.slices}, each of {effort.slice_seconds:g} s with single texts or of {effort.bulk_texts:,} texts"
    return Section(model.key, model.title, _flags(argv), model.texts, slices, rows, curves)


def results(sections: Sequence[Section]) -> Results:
    """Return the results of a run that ends now, on this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return Results(
        date=str(dt.datetime.now(tz=dt.UTC).date()),
        machine=f"{os.cpu_count()} x {processor}, {platform.system()} {platform.release()}",
        python=platform.python_version(),
        sections=sections,
    )


def print_tables(sections: Sequence[Section]) -> None:
    """Print the rows for people."""
    for each in sections:
        table = Table(title=f"runed against raw llama-server: {each.title}", title_justify="left")
        for header in ("what", "runed", "raw", "difference", "bar", ""):
            table.add_column(header)
        for row in each.rows:
            table.add_row(row.name, row.runed, row.raw, row.difference, row.bar, "ok" if row.passed else "MISSED")
        Console(width=160).print(table)


def write_report(results: Results, docs: Path = DOCS) -> None:
    """Write the page benchmarks.md, with the hand-written notes, and a picture of each model.

    The same results give the same bytes.

    Args:
        results: The results of one run.
        docs: The folder of the page and the pictures.
    """
    lines = [
        "# Benchmarks",
        "",
        INTRODUCTION,
        "",
        f"- Date: {results.date}",
        f"- Machine: {results.machine}",
        f"- Python {results.python}",
        "",
    ]
    for each in results.sections:
        lines += [*_section(each), ""]
        if each.curves:
            name = f"benchmarks-{each.key}.svg"
            lines += [f"![throughput, p50 and p99 by the number of clients, {each.title}]({name})", ""]
            (docs / name).write_text(draw(each.title, f"{results.machine.partition(',')[0]}, {results.date}", each.curves))
    (docs / "benchmarks.md").write_text("\n".join([*lines, NOTES.read_text()]))


def _section(section: Section) -> list[str]:
    return [
        f"## {section.title}",
        "",
        f"- Engine: `{section.engine}`",
        f"- Short texts: {section.texts}",
        f"- Slices: {section.slices}",
        "",
        "| what | runed | raw | difference | bar | reached |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.runed} | {row.raw} | {row.difference} | {row.bar} | {'yes' if row.passed else 'no'} |"
            for row in section.rows
        ),
    ]


_PLACES = {"--host": "<socket>", "--slot-save-path": "<directory>", "--socket": "<socket>", "--graph": "<graph>"}
"""Flags whose values are names in a folder of this machine."""


def _flags(argv: Sequence[str]) -> str:
    """Return a command line without paths of this machine."""
    parts = [Path(part).name if part.startswith("/") else part for part in argv]
    for flag, name in _PLACES.items():
        if flag in parts:
            parts[parts.index(flag) + 1] = name
    return shlex.join(parts).replace("'<", "<").replace(">'", ">")
