"""What a run of chaos saw: calls, vectors, times to heal, and violations of a promise."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Report:
    """Takes notes of several threads.

    Attributes:
        seed: The seed of the run.
        judges_times: Whether a healing beyond its bar is a violation. Otherwise it is only told.
        calls: The calls of all clients, by client and outcome: "ok" or the reason of an error.
        vectors: The vectors that were compared with their references.
        worst: The smallest cosine to a reference.
        jobs: The jobs that ended with a complete output.
        healed: Seconds to heal, by fault.
        late: Descriptions of healings beyond their bars.
        violations: How often each promise was broken, by a description; must be empty.
    """

    seed: int
    judges_times: bool = True
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    vectors: int = 0
    worst: float = 1.0
    jobs: int = 0
    healed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late: list[str] = field(default_factory=list)
    violations: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _began: float = field(default_factory=time.monotonic)

    def called(self, client: str, outcome: str) -> None:
        """Count a call."""
        with self._lock:
            self.calls[client, outcome] += 1

    def compared(self, cosines: list[float]) -> None:
        """Count vectors that were compared with their references."""
        with self._lock:
            self.vectors += len(cosines)
            self.worst = min([self.worst, *cosines])

    def violated(self, what: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.violations[what] += 1
            first = self.violations[what] == 1
        if first:
            self.say(f"VIOLATION: {what}")

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        sys.stdout.write(f"{time.monotonic() - self._began:7.1f} s  {line}\n")
        sys.stdout.flush()

    def lines(self) -> list[str]:
        """Return the summary, for people."""
        lines = [f"{'fault':<38} {'count':>5} {'median':>8} {'worst':>8}"]
        for fault, seconds in sorted(self.healed.items()):
            lines.append(f"{fault:<38} {len(seconds):>5} {median(seconds):>6.2f} s {max(seconds):>6.2f} s")
        faults = sum(map(len, self.healed.values()))
        lines.append(f"{faults} faults, seed {self.seed}; {self.vectors:,} vectors compared, worst cosine {self.worst:.6f}")
        lines.append(f"{self.jobs} jobs complete")
        for client in sorted({client for client, _ in self.calls}):
            outcomes = sorted((outcome, count) for (name, outcome), count in self.calls.items() if name == client)
            lines.append(f"{client}: " + ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes))
        lines += [f"late: {text}" for text in self.late]
        lines += [f"VIOLATION, {count} times: {text}" for text, count in self.violations.items()] or ["no violations"]
        return lines
