"""What was measured, for a terminal and for docs/benchmarks.md."""

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
"""What to say of the figures, by hand."""

PLOT = DOCS / "benchmarks.svg"

INTRODUCTION = """\
Written by `make bench`: runed with its default profile and raw `llama-server`, the same program with the same model and flags
except for the number of slots, in turn in one run, so that ratios hold where absolute times do not.

Load comes from a process of its own, one thread and one kept UNIX connection a client, each with its next text as soon as it
has the vector of the last one: for raw by Python's `http.client`, with base64 vectors decoded to numpy; for runed by the sync
client of the Python package. No text occurs twice, except where that is what is measured. Percentiles are over all calls of a
row, rates are medians of slices in which raw and runed take turns. The best raw setting is found by trials first, and then
measured again in those slices.\
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        name: What was measured.
        runed: The measurement of runed, with its unit.
        raw: The measurement of the yardstick.
        difference: How they compare.
        bar: What the project wants.
        passed: Whether it is reached.
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
        rows: What was measured.
    """

    model: Model
    argv: Sequence[str]
    rows: Sequence[Row]


def median_ms(seconds: Sequence[float]) -> float:
    """Give the median in milliseconds."""
    return statistics.median(seconds) * 1000


def percentile(seconds: Sequence[float], share: float) -> float:
    """Give a percentile by nearest rank, in seconds."""
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
    """Keep the rows with all that is needed to judge them."""
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
    """Give a command line without the paths of this machine."""
    parts = [Path(part).name if part.startswith("/") else part for part in argv]
    for flag, name in (("--host", "<socket>"), ("--slot-save-path", "<directory>")):
        if flag in parts:
            parts[parts.index(flag) + 1] = name
    return shlex.join(parts).replace("'<", "<").replace(">'", ">")
