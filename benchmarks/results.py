"""The results of a run: what the page and the pictures are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_name("results.json")
"""The results of the last whole run."""


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
class Summary:
    """The figures of several slices: texts per second, and percentiles of single texts in seconds."""

    rate: float
    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.rate:.1f} texts/s, p50 {self.p50 * 1000:.0f} ms, p99 {self.p99 * 1000:.0f} ms"


@dataclass(frozen=True, slots=True)
class Curves:
    """The figures by the number of clients.

    Attributes:
        runed: Those of runed.
        best: Those of raw with its best number of slots.
        one_slot: Those of raw with one slot.
        slots: The best number of slots.
    """

    runed: Mapping[int, Summary]
    best: Mapping[int, Summary]
    one_slot: Mapping[int, Summary]
    slots: int


@dataclass(frozen=True, slots=True)
class Section:
    """The results of one model.

    Attributes:
        key: Its short name, as in `--model`.
        title: Its name, for people.
        engine: The command line of the daemon's engine, without paths of the machine.
        texts: A description of the short texts.
        slices: A description of the slices.
        rows: The rows of the table.
        curves: The figures by the number of clients; None if they were not measured.
    """

    key: str
    title: str
    engine: str
    texts: str
    slices: str
    rows: Sequence[Row]
    curves: Curves | None


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run, with its date in ISO 8601."""

    date: str
    machine: str
    python: str
    sections: Sequence[Section]


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1000


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank, in seconds."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def store(results: Results, path: Path = RESULTS) -> None:
    """Write results to a file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def load(path: Path = RESULTS) -> Results:
    """Read results from a file.

    Raises:
        FileNotFoundError: There is none.
        ValidationError: It is from another version of this module.
    """
    return msgspec.json.decode(path.read_bytes(), type=Results)
