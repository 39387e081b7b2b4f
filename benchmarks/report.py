"""Report of the measurements, for a terminal and for docs/benchmarks.md."""

from __future__ import annotations

import datetime as dt
import math
import os
import platform
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.models import Model

DOCS = Path(__file__).resolve().parent.parent / "docs"
REPORT = DOCS / "benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")
"""Hand-written remarks on the figures."""

PLOT = DOCS / "benchmarks.svg"

INTRODUCTION = """\
`make bench` writes this page. It compares runed in its default profile with raw `llama-server`: the same program with the same
model and flags, except for the number of slots. Both take turns in one run, so that a ratio means more than an absolute time.

A separate process makes the load. Each client has one thread and one kept UNIX connection, and sends its next text as soon
as it
has the vector of the last one. The client of raw is Python's `http.client`; it decodes base64 vectors to numpy. The client of
runed is the sync client of the Python package. No text occurs twice, except where repetition is measured. Percentiles are over
all calls of a row. Rates are medians of slices in which raw and runed take turns. Trials find raw's best setting first; it is
then measured again in those slices.\
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        name: The name of the measurement.
        runed: The measurement of runed, with its unit.
        raw: The measurement of the yardstick.
        difference: The difference or ratio of both.
        bar: The project's goal.
        passed: Whether the bar is reached.
    """

    name: str
    runed: str
    raw: str
    difference: str
    bar: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one model.

    Attributes:
        model: The model.
        argv: The command line of the daemon's engine.
        rows: The rows of the table.
    """

    model: Model
    argv: Sequence[str]
    rows: Sequence[Row]


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1000


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank, in seconds."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def print_tables(sections: Sequence[Section]) -> None:
    """Print the rows for people."""
    for section in sections:
        table = Table(title=f"runed against raw llama-server: {section.model.title}", title_justify="left")
        for header in ("what", "runed", "raw", "difference", "bar", ""):
            table.add_column(header)
        for row in section.rows:
            table.add_row(row.name, row.runed, row.raw, row.difference, row.bar, "ok" if row.passed else "MISSED")
        Console(width=160).print(table)


def write_report(sections: Sequence[Section]) -> None:
    """Write the rows to docs/benchmarks.md, with the machine, the flags and the hand-written notes."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    lines = [
        "# Benchmarks",
        "",
        INTRODUCTION,
        "",
        f"- Date: {dt.datetime.now(tz=dt.UTC).date()}",
        f"- Machine: {os.cpu_count()} x {processor}, {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}",
        "",
    ]
    for section in sections:
        lines += _section(section)
    REPORT.write_text("\n".join([*lines, NOTES.read_text()]))


def _section(section: Section) -> list[str]:
    model, effort = section.model, section.model.effort
    plot = ["", f"![p50 and p99 against the number of clients]({PLOT.name})"] if model.key == "minilm" else []
    return [
        f"## {model.title}",
        "",
        f"- Engine: `{_flags(section.argv)}`",
        f"- Short texts: {model.texts}",
        f"- Slices: {effort.slices}, each of {effort.slice_seconds:g} s with single texts or of {effort.bulk_texts:,} texts",
        "",
        "| what | runed | raw | difference | bar | reached |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.runed} | {row.raw} | {row.difference} | {row.bar} | {'yes' if row.passed else 'no'} |"
            for row in section.rows
        ),
        *plot,
        "",
    ]


def _flags(argv: Sequence[str]) -> str:
    """Return a command line without paths of this machine."""
    parts = [Path(part).name if part.startswith("/") else part for part in argv]
    for flag, name in (("--host", "<socket>"), ("--slot-save-path", "<directory>")):
        if flag in parts:
            parts[parts.index(flag) + 1] = name
    return shlex.join(parts).replace("'<", "<").replace(">'", ">")
