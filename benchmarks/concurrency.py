"""Many clients at once. Each sends one short text after the other."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.lab import CLIENTS, Lab, say
from benchmarks.load import Sample, Target, closed_loop
from benchmarks.report import Row, percentile

CURVE_CLIENTS = (1, 2, 4, 8, 16, 32, 64)

_CURVE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of several slices: texts per second, and percentiles of single texts in seconds."""

    rate: float
    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.rate:.1f} texts/s, p50 {self.p50 * 1000:.0f} ms, p99 {self.p99 * 1000:.0f} ms"


def measure_clients(lab: Lab) -> list[Row]:
    """Measure 16 clients of single texts against raw with one slot and with its best slot count."""
    slots = lab.best_slots()
    with lab.raw(1) as one, lab.raw(slots) as best:
        targets = [lab.daemon.target, one, best]
        samples = _alternate(lab, targets, clients=CLIENTS, slices=lab.effort.slices, seconds=lab.effort.slice_seconds)
    ours, lone, strongest = (_summary(samples[target]) for target in targets)
    name = f"{CLIENTS} clients, short single texts"
    return [
        Row(
            f"{name}: throughput against one slot",
            str(ours),
            str(lone),
            f"x {ours.rate / lone.rate:.2f}",
            "at least x 1.3",
            ours.rate >= 1.3 * lone.rate,
        ),
        Row(
            f"{name}: against the best slot count, {slots}",
            str(ours),
            str(strongest),
            f"x {ours.rate / strongest.rate:.2f}",
            "at least x 1.0",
            ours.rate >= strongest.rate,
        ),
        Row(
            f"{name}: p99 against p50",
            f"x {ours.p99 / ours.p50:.1f}",
            f"x {lone.p99 / lone.p50:.1f} with one slot, x {strongest.p99 / strongest.p50:.1f} with {slots}",
            "-",
            "at most x 3",
            ours.p99 <= 3 * ours.p50,
        ),
    ]


def measure_curves(lab: Lab) -> dict[str, dict[int, Summary]]:
    """Measure runed, raw with one slot, and raw with its best slot count, each by the number of clients."""
    seconds = min(_CURVE_SECONDS, lab.effort.slice_seconds)
    with lab.raw(1) as one, lab.raw(lab.best_slots()) as best:
        targets = [lab.daemon.target, one, best]
        curves: dict[str, dict[int, Summary]] = {target.name: {} for target in targets}
        for clients in CURVE_CLIENTS:
            for target, samples in _alternate(lab, targets, clients=clients, slices=1, seconds=seconds).items():
                curves[target.name][clients] = _summary(samples)
    return curves


def _alternate(lab: Lab, targets: list[Target], *, clients: int, slices: int, seconds: float) -> dict[Target, list[Sample]]:
    """Load the targets in turn, several times. A drift of the machine's speed then hits all of them."""
    samples: dict[Target, list[Sample]] = {target: [] for target in targets}
    for _ in range(slices):
        for target in targets:
            sample = lab.load.run(closed_loop, target, lab.model, lab.fresh(), clients=clients, seconds=seconds)
            samples[target].append(sample)
            say(f"  {clients} clients, {target.name}: {_summary([sample])}")
    return samples


def _summary(samples: list[Sample]) -> Summary:
    seconds = [second for sample in samples for second in sample.seconds]
    return Summary(
        rate=statistics.median(sample.rate for sample in samples),
        p50=percentile(seconds, 0.5),
        p99=percentile(seconds, 0.99),
    )
