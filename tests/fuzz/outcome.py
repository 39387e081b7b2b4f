"""What a run of the fuzzer tries, and what it saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.watch import Waits

LONGEST_WAIT = 0.5
"""Seconds that another client may wait during the run."""

RSS_GROWTH, RSS_SLACK = 0.10, 16 * 2**20
"""Growth of the daemon's memory that a long run allows, as a share of that after the warm-up and in bytes."""


@dataclass
class Finding:
    """An input that broke a promise.

    Attributes:
        target: The target.
        what: The broken promise.
        data: The input, made smaller where that was possible.
    """

    target: str
    what: str
    data: bytes


@dataclass
class Outcome:
    """What a run saw.

    Attributes:
        seed: The seed.
        inputs: The inputs that were tried, by target.
        seconds: The duration, in seconds.
        findings: The first input for each broken promise.
        repeated: Further inputs that broke the same promise in the same place.
        new: Inputs with a new behaviour, by target. They join the corpus of later runs.
        waits: What another client of the daemon noticed.
        rss: The daemon's memory after the warm-up, at most, and some seconds after the end, in bytes.
    """

    seed: int
    inputs: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    repeated: int = 0
    new: dict[str, list[bytes]] = field(default_factory=dict)
    waits: Waits = field(default_factory=Waits)
    rss: tuple[int, int, int] = (0, 0, 0)

    def add(self, finding: Finding) -> None:
        """Take a finding, if it is the first of its kind."""
        if any((known.target, known.what) == (finding.target, finding.what) for known in self.findings):
            self.repeated += 1
        else:
            self.findings.append(finding)

    def late(self) -> list[str]:
        """Return the bars of time and memory that were missed, in words."""
        warm, _, after = self.rss
        missed = []
        if self.waits.longest > LONGEST_WAIT:
            missed.append(f"another client waited for {self.waits.longest:.2f} s, more than {LONGEST_WAIT:g} s")
        if after > warm * (1 + RSS_GROWTH) + RSS_SLACK:
            missed.append(f"the daemon's memory grew from {warm / 2**20:.0f} to {after / 2**20:.0f} MiB")
        return missed

    def lines(self) -> list[str]:
        """Return the summary, for people."""
        targets = ", ".join(f"{target} {count:,}" for target, count in self.inputs.items())
        lines = [
            f"{self.inputs.total():,} inputs in {self.seconds:.0f} s, seed {self.seed}: {targets}",
            f"{sum(map(len, self.new.values()))} inputs with a new behaviour",
        ]
        if self.waits.calls:
            warm, most, after = (size / 2**20 for size in self.rss)
            waits = self.waits
            lines.append(f"another client: {waits.calls:,} calls, {waits.failures} failed, longest wait {waits.longest:.2f} s")
            lines.append(f"RSS of the daemon: {warm:.0f} MiB before, {most:.0f} MiB at most, {after:.0f} MiB after")
        lines += [f"late: {text}" for text in self.late()]
        lines += [f"FINDING in {it.target}: {it.what} ({len(it.data)} bytes)" for it in self.findings] or ["no findings"]
        return [*lines, f"{self.repeated} further inputs did the same"] if self.repeated else lines


@dataclass(frozen=True)
class Plan:
    """What a run tries.

    Attributes:
        seed: The seed.
        inputs: The inputs by target.
        grown: The folder of the grown corpus; None for the corpus of the repository alone.
    """

    seed: int
    inputs: Mapping[str, int]
    grown: Path | None = None

    def random(self, target: str, number: int) -> Random:
        """Return the random numbers of one input."""
        return Random(f"{self.seed} {target} {number}")


def share(inputs: int, targets: Sequence[str]) -> dict[str, int]:
    """Share a number of inputs among targets."""
    return {target: inputs // len(targets) + (index < inputs % len(targets)) for index, target in enumerate(targets)}
