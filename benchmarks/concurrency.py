"""Many clients at once. Each sends one short text after the other."""

from __future__ import annotations

import statistics

from benchmarks.lab import CLIENTS, Lab, say
from benchmarks.load import Sample, Target, closed_loop
from benchmarks.results import Curves, Row, Summary, percentile

CLIENT_COUNTS = (1, 2, 4, 8, 16, 32, 64)

_FEW_CLIENTS = (2, 4)
"""Numbers of clients for which the micro-batches are small."""

_JUDGED = (*_FEW_CLIENTS, CLIENTS)
"""Numbers of clients in the table. The others have half of the slices."""


def measure_curves(lab: Lab) -> Curves:
    """Measure runed, raw with one slot, and raw with its best slot count, each by the number of clients.

    They take turns, and so do the numbers of clients. A drift of the machine's speed then hits all of them.
    """
    slots, slices, seconds = lab.best_slots(), lab.effort.slices, lab.effort.slice_seconds
    samples: dict[tuple[Target, int], list[Sample]] = {}
    with lab.raw(1) as one, lab.raw(slots) as best:
        targets = (lab.daemon.target, best, one)
        for number in range(slices):
            for clients in CLIENT_COUNTS if number < slices // 2 else _JUDGED:
                for target in targets:
                    sample = lab.load.run(closed_loop, target, lab.model, lab.fresh(), clients=clients, seconds=seconds)
                    samples.setdefault((target, clients), []).append(sample)
                    say(f"  {clients} clients, {target.name}: {_summary([sample])}")
    ours, strongest, lone = ({clients: _summary(samples[target, clients]) for clients in CLIENT_COUNTS} for target in targets)
    return Curves(runed=ours, best=strongest, one_slot=lone, slots=slots)


def client_rows(curves: Curves, *, bar: float = 1.0) -> list[Row]:
    """Judge single texts of few clients against raw with one slot, and those of 16 also against its best slot count.

    Args:
        curves: What was measured.
        bar: The goal for 16 clients, in multiples of the throughput of raw with its best slot count.
    """
    ours, lone, strongest = (curve[CLIENTS] for curve in (curves.runed, curves.one_slot, curves.best))
    name = f"{CLIENTS} clients, short single texts"
    return [
        *(_throughput(f"{few} clients, short single texts", curves, few, 1.0) for few in _FEW_CLIENTS),
        _throughput(name, curves, CLIENTS, 1.3),
        Row(
            f"{name}: against the best slot count, {curves.slots}",
            str(ours),
            str(strongest),
            f"x {ours.rate / strongest.rate:.2f}",
            f"at least x {bar}",
            ours.rate >= bar * strongest.rate,
        ),
        Row(
            f"{name}: p99 against p50",
            f"x {ours.p99 / ours.p50:.1f}",
            f"x {lone.p99 / lone.p50:.1f} with one slot, x {strongest.p99 / strongest.p50:.1f} with {curves.slots}",
            "-",
            "at most x 3",
            ours.p99 <= 3 * ours.p50,
        ),
    ]


def _throughput(name: str, curves: Curves, clients: int, bar: float) -> Row:
    ours, lone = curves.runed[clients], curves.one_slot[clients]
    ratio = ours.rate / lone.rate
    return Row(
        f"{name}: throughput against one slot", str(ours), str(lone), f"x {ratio:.2f}", f"at least x {bar}", ratio >= bar
    )


def _summary(samples: list[Sample]) -> Summary:
    seconds = [second for sample in samples for second in sample.seconds]
    return Summary(
        rate=statistics.median(sample.rate for sample in samples),
        p50=percentile(seconds, 0.5),
        p99=percentile(seconds, 0.99),
    )
