"""Simulate a job on many nodes: `python -m benchmarks.simulate`. It computes and measures nothing.

A job is a queue of parts. A node that has its model takes the next part, embeds it at its own speed, and takes another one.
Nodes differ in speed, some are stragglers, and some die: a dead node loses its part, and a new one takes its place later. All
nodes get their model from one store, which shares its line among them. One dispatcher hands out the parts, as the driver of Ray
or Spark does. When no part waits any more, an idle node may repeat a part of a slow node, as speculative tasks of Spark do.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job and its cluster.

    Attributes:
        nodes: The number of nodes.
        texts: The number of texts.
        speed: Texts per second of an ordinary node.
        part_texts: Texts of a part.
        spread: The standard deviation of the logarithm of a node's speed.
        stragglers: The share of nodes that have a quarter of the speed.
        failure_hours: Mean hours until a node dies; 0 for never.
        replace_seconds: Seconds until a new node takes the place of a dead one.
        model_bytes: Bytes that a new node fetches.
        store_rate: Bytes per second of the store for all nodes.
        node_rate: Bytes per second of the line of one node.
        dispatch_seconds: Seconds of the dispatcher for each part.
        speculation: Whether idle nodes repeat parts of slow ones.
        seed: The seed of all chances.
    """

    nodes: int = 1000
    texts: int = 100_000_000
    speed: float = 20.0
    part_texts: int = 10_000
    spread: float = 0.05
    stragglers: float = 0.02
    failure_hours: float = 1000.0
    replace_seconds: float = 600.0
    model_bytes: float = 610e6
    store_rate: float = 1.25e9
    node_rate: float = 0.125e9
    dispatch_seconds: float = 0.005
    speculation: bool = True
    seed: int = 1

    @property
    def ideal_hours(self) -> float:
        """Hours that ordinary nodes would take that never start, wait or die."""
        return self.texts / (self.speed * self.nodes) / _HOUR


@dataclass(slots=True)
class Outcome:
    """The result of a simulated job.

    Attributes:
        hours: Hours until the last part is done.
        first_start: Seconds until the first node has its model.
        last_start: Seconds until the last of the first nodes has its model.
        deaths: The number of nodes that died.
        lost: Texts that were embedded for a part that did not end.
        dispatcher: The share of the time that the dispatcher worked.
        tail_hours: Hours from the moment when no part waited any more to the end.
    """

    hours: float = 0.0
    first_start: float = math.inf
    last_start: float = 0.0
    deaths: int = 0
    lost: float = 0.0
    dispatcher: float = 0.0
    tail_hours: float = 0.0


@dataclass(slots=True)
class _Node:
    speed: float
    life: int = 0
    """Raised at each death, so that events of earlier lives are ignored."""
    task: int = 0
    """Raised at each end of a task, for the same reason."""
    part: int | None = None
    began: float = 0.0


@dataclass(slots=True)
class _Store:
    """A line that all downloads share alike. `served` grows by the bytes that each of them gets."""

    plan: Plan
    served: float = 0.0
    at: float = 0.0
    waiting: list[tuple[float, int, int]] = field(default_factory=list)

    def advance(self, now: float) -> None:
        if self.waiting:
            self.served += (now - self.at) * self._rate()
        self.at = now

    def next_end(self) -> float:
        return self.at + max(0.0, self.waiting[0][0] - self.served) / self._rate() if self.waiting else math.inf

    def _rate(self) -> float:
        return min(self.plan.node_rate, self.plan.store_rate / len(self.waiting))


class Simulation:
    """One simulated job.

    Args:
        plan: The job and its cluster.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = Random(plan.seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._store = _Store(plan)
        self._nodes = [_Node(self._speed()) for _ in range(plan.nodes)]
        self._parts = deque(range(math.ceil(plan.texts / plan.part_texts)))
        self._left = len(self._parts)
        self._workers: dict[int, set[int]] = {}
        self._idle: set[int] = set()
        self._dispatcher_free = 0.0
        self._busy = 0.0
        self._empty_since = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Simulate the job to its end."""
        for number in range(self._plan.nodes):
            self._arrive(number)
        while self._left:
            if self._store.next_end() <= (self._events[0][0] if self._events else math.inf):
                self._move(self._store.next_end())
                _, number, life = heapq.heappop(self._store.waiting)
                if life == self._nodes[number].life:
                    self._started(number)
            else:
                time, _, event = heapq.heappop(self._events)
                self._move(time)
                event()
        self.outcome.hours = self._now / _HOUR
        self.outcome.dispatcher = self._busy / self._now
        self.outcome.tail_hours = (self._now - self._empty_since) / _HOUR
        return self.outcome

    def _speed(self) -> float:
        factor = 0.25 if self._random.random() < self._plan.stragglers else 1.0
        return self._plan.speed * factor * math.exp(self._random.gauss(0, self._plan.spread))

    def _move(self, time: float) -> None:
        self._store.advance(time)
        self._now = time

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now + seconds, self._count, event))

    def _arrive(self, number: int) -> None:
        """Let a node fetch its model, and decide when it dies."""
        node = self._nodes[number]
        heapq.heappush(self._store.waiting, (self._store.served + self._plan.model_bytes, number, node.life))
        if self._plan.failure_hours:
            life = node.life
            seconds = self._random.expovariate(1 / (self._plan.failure_hours * _HOUR))
            self._after(seconds, lambda: self._die(number) if node.life == life else None)

    def _started(self, number: int) -> None:
        if not self._nodes[number].life:
            self.outcome.first_start = min(self.outcome.first_start, self._now)
            self.outcome.last_start = self._now
        self._take(number)

    def _take(self, number: int) -> None:
        """Give a node the next part, or one that another node works on."""
        if self._parts:
            part = self._parts.popleft()
            if not self._parts:
                self._empty_since = self._now
        elif (found := self._slowest(number)) is not None:
            part = found
        else:
            self._idle.add(number)
            return
        node = self._nodes[number]
        self._dispatcher_free = max(self._now, self._dispatcher_free) + self._plan.dispatch_seconds
        self._busy += self._plan.dispatch_seconds
        node.part, node.began = part, self._dispatcher_free
        self._workers.setdefault(part, set()).add(number)
        task = node.task
        seconds = self._dispatcher_free - self._now + self._plan.part_texts / node.speed
        self._after(seconds, lambda: self._done(number) if node.task == task else None)

    def _slowest(self, number: int) -> int | None:
        """Return the part that ends last, if this node alone would end it sooner."""
        if not self._plan.speculation:
            return None
        ends = {part: self._end(*workers) for part, workers in self._workers.items() if len(workers) == 1}
        part = max(ends, key=ends.__getitem__, default=None)
        own = self._now + self._plan.part_texts / self._nodes[number].speed
        return part if part is not None and ends[part] > own else None

    def _end(self, number: int) -> float:
        return self._nodes[number].began + self._plan.part_texts / self._nodes[number].speed

    def _done(self, number: int) -> None:
        part = self._nodes[number].part
        assert part is not None
        self._left -= 1
        self._nodes[number].part = None
        self._nodes[number].task += 1
        others = self._workers.pop(part) - {number}
        for other in others:
            self._drop(other)
        for free in (number, *others):
            self._take(free)

    def _drop(self, number: int) -> None:
        """End the work of a node on its part. What it has done is lost."""
        node = self._nodes[number]
        self.outcome.lost += max(0.0, self._now - node.began) * node.speed
        node.part = None
        node.task += 1

    def _die(self, number: int) -> None:
        node = self._nodes[number]
        self.outcome.deaths += 1
        node.life += 1
        self._idle.discard(number)
        if (part := node.part) is not None:
            self._drop(number)
            self._workers[part].discard(number)
            if not self._workers[part]:
                del self._workers[part]
                self._parts.appendleft(part)
                if self._idle:
                    self._take(self._idle.pop())
        node.speed = self._speed()
        self._after(self._plan.replace_seconds, lambda: self._arrive(number))


def table(plans: Sequence[tuple[str, Plan]]) -> str:
    """Simulate plans, and return their outcomes as a table in Markdown."""
    lines = [
        "| plan | ideal | job | lost work | deaths | last node ready | dispatcher busy | tail |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans:
        outcome = Simulation(plan).run()
        lines.append(
            f"| {name} | {plan.ideal_hours:.2f} h | {outcome.hours:.2f} h (x {outcome.hours / plan.ideal_hours:.2f}) "
            f"| {outcome.lost / plan.texts:.2%} | {outcome.deaths:,} | {outcome.last_start:,.0f} s "
            f"| {outcome.dispatcher:.1%} | {outcome.tail_hours * 60:,.0f} min |"
        )
    return "\n".join(lines)


def plans(base: Plan) -> list[tuple[str, Plan]]:
    """Return the plan of a user, and those that change one thing in it."""
    return [
        (f"{base.nodes:,} nodes, {base.texts:,} texts, parts of {base.part_texts:,}", base),
        ("parts of 1,000", replace(base, part_texts=1000)),
        ("parts of 100,000", replace(base, part_texts=100_000)),
        ("no speculation", replace(base, speculation=False)),
        ("no speculation, parts of 1,000", replace(base, speculation=False, part_texts=1000)),
        ("nodes die every 100 hours", replace(base, failure_hours=100)),
        ("the same, parts of 100,000", replace(base, failure_hours=100, part_texts=100_000)),
        ("models in the image of the nodes", replace(base, model_bytes=1)),
        ("a store of 1 Gbit/s", replace(base, store_rate=0.125e9)),
        ("a fifth of the nodes are stragglers", replace(base, stragglers=0.2)),
    ]


def main() -> int:
    """Print the table. Return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description="Simulate a job on many nodes.")
    parser.add_argument("--nodes", type=int, default=Plan().nodes)
    parser.add_argument("--texts", type=lambda text: int(float(text)), default=Plan().texts, help="such as 1e8")
    parser.add_argument("--speed", type=float, default=Plan().speed, help="texts per second of a node")
    parser.add_argument("--part-texts", type=int, default=Plan().part_texts, help="texts of a part")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    print(table(plans(Plan(**vars(parser.parse_args())))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
