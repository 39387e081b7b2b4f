"""Very many clients of all kinds for a minute. Some go away; every other call must be answered once, and correctly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

import runed
from benchmarks.lab import Daemon, Lab, say
from benchmarks.load import LoadProcess, Target
from benchmarks.models import Model
from benchmarks.results import Row

CLIENTS = 200
PROCESSES = 4
SECONDS = 60.0

QUEUE_TEXTS = 1024
"""Texts that the daemon's queue holds. These clients fill it, so that some are refused."""

_KINDS = ("single",) * 7 + ("batch", "items", "stream")
"""The kinds of clients, with their frequencies. A client is of one kind."""

_CANCELLED = 0.1
"""Share of all calls that are cancelled before their answer."""

_CANCEL_TRIES = 0.5
"""Share of the next calls that are cancelled while too few were. Many have their answer first."""

_CANCEL_WITHIN = 0.3
"""Longest time from a call's start to its cancellation, in seconds."""

_WRONG = 0.01
"""Share of the texts that no model reads."""

_HURRIED = 0.02
"""Share of the calls that have a time limit of `_HURRY`."""

_HURRY = 0.03
"""Time limit of a hurried call, in seconds."""

_PATIENCE = 10.0
"""Time limit of all other calls of lists, in seconds. A call that finds no room in the queue until then is refused."""

_KNOWN = 0.3
"""Share of the texts whose vectors were computed before."""

_KNOWN_TEXTS = 50
"""Number of different texts whose vectors were computed before."""

_PAUSE = 2.0
"""Longest pause of a client between two single texts, in seconds."""

_DRAIN = 120.0
"""Seconds after the end within which every call must have its answer."""

_KEPT_EVERY = 20
"""Of the vectors of new texts, one in 20 is kept and compared with that of a raw server."""

_BAR = 0.9999


@dataclass(slots=True)
class Outcome:
    """The outcomes of the calls of one process.

    Attributes:
        calls: Calls that were begun.
        cancelled: Calls that were cancelled before their answer.
        answered: Texts that got a vector.
        refused: Calls, or texts of a list or stream, that got an error, by reason.
        lost: Descriptions of calls that got neither; must be empty.
        doubled: Texts that were answered more than once.
        worst: The smallest cosine to a vector that was computed before.
        kept: Some vectors of new texts, by the number of the text.
    """

    calls: int = 0
    cancelled: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    worst: float = 1.0
    kept: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Add the outcomes of another process."""
        self.calls += other.calls
        self.cancelled += other.cancelled
        self.answered += other.answered
        self.refused += other.refused
        self.lost += other.lost
        self.doubled += other.doubled
        self.worst = min(self.worst, other.worst)
        self.kept |= other.kept


def measure_soak(lab: Lab, *, seconds: float = SECONDS) -> list[Row]:
    """Run 200 clients of all kinds against a daemon with a short queue, and check every call."""
    with Daemon(lab.model, RUNED_QUEUE_TEXTS=str(QUEUE_TEXTS)) as daemon:
        first = lab.fresh(_KNOWN_TEXTS)
        with daemon.connect() as client:
            known = {number: client.embed(lab.model.text(number)) for number in range(first, first + _KNOWN_TEXTS)}
        outcome = Outcome()
        with ExitStack() as stack:
            processes = [stack.enter_context(LoadProcess()) for _ in range(PROCESSES)]
            clients = CLIENTS // PROCESSES
            parts = [
                process.start(soak, daemon.target, lab.model, lab.fresh(), known, clients=clients, seconds=seconds)
                for process in processes
            ]
            for part in parts:
                outcome.add(part.result())
        with daemon.connect() as client:
            in_flight = client.health().in_flight_requests
    worst = min(outcome.worst, _worst_of_kept(lab, outcome.kept))
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(outcome.refused.items()))
    for what, count in outcome.lost.items():
        say(f"  soak: lost: {what}: {count}")
    lost = outcome.lost.total()
    return [
        Row(
            f"{CLIENTS} clients for {seconds:g} s, all lanes, a tenth of the calls cancelled at random",
            f"{outcome.calls:,} calls, {outcome.cancelled / outcome.calls:.0%} cancelled; {outcome.answered:,} vectors; "
            f"{lost} lost, {outcome.doubled} doubled, worst cosine {worst:.6f}; refused: {reasons or 'none'}",
            "-",
            "-",
            f"none lost, doubled or refused without a reason, cosine at least {_BAR}",
            lost == 0 and outcome.doubled == 0 and worst >= _BAR and in_flight == 0 and "" not in outcome.refused,
        )
    ]


def soak(
    target: Target, model: Model, first: int, known: Mapping[int, NDArray[np.float32]], *, clients: int, seconds: float
) -> Outcome:
    """Run some of the clients, in this process.

    Args:
        target: The daemon.
        model: The model whose texts are sent.
        first: The number of the first new text.
        known: Vectors that were computed before, by the number of the text.
        clients: The number of clients.
        seconds: The time during which they begin calls, in seconds.
    """
    return asyncio.run(_Soak(target, model, first, known).run(clients, seconds))


class _Soak:
    def __init__(self, target: Target, model: Model, first: int, known: Mapping[int, NDArray[np.float32]]) -> None:
        self._target = target
        self._model = model
        self._next = first
        self._known = known
        self._random = Random(first)
        self._outcome = Outcome()

    async def run(self, clients: int, seconds: float) -> Outcome:
        end = time.monotonic() + seconds
        tasks = [asyncio.create_task(self._client(_KINDS[number % len(_KINDS)], end)) for number in range(clients)]
        _, late = await asyncio.wait(tasks, timeout=seconds + _DRAIN)
        self._outcome.lost["no answer"] += len(late)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outcome.lost = +self._outcome.lost
        return self._outcome

    async def _client(self, kind: str, end: float) -> None:
        async with await runed.connect_async(socket_path=self._target.socket) as client:
            while time.monotonic() < end:
                self._outcome.calls += 1
                call = asyncio.create_task(self._call(kind, client))
                too_few = self._outcome.cancelled < _CANCELLED * self._outcome.calls
                if too_few and self._random.random() < _CANCEL_TRIES:
                    await asyncio.wait([call], timeout=self._random.uniform(0, _CANCEL_WITHIN))
                    call.cancel()
                try:
                    await call
                except asyncio.CancelledError:
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    self._outcome.cancelled += 1
                except runed.errors.RunedError as error:
                    self._outcome.refused[error.reason] += 1
                except Exception as error:  # noqa: BLE001 # whatever it is, this call has no answer and no reason
                    self._outcome.lost[repr(error)[:200]] += 1
                if kind == "single":
                    await asyncio.sleep(self._random.uniform(0, _PAUSE))

    async def _call(self, kind: str, client: runed.AsyncClient) -> None:
        timeout = _HURRY if self._random.random() < _HURRIED else _PATIENCE
        match kind:
            case "single":
                [number] = numbers = self._numbers(1)
                self._check(number, await client.embed(self._text(number), timeout=timeout))
            case "batch":
                numbers = [number for number in self._numbers(self._random.randint(2, 128)) if number is not None]
                vectors = await client.embed_batch([self._text(number) for number in numbers], timeout=timeout)
                assert len(vectors) == len(numbers)
                for number, vector in zip(numbers, vectors, strict=True):
                    self._check(number, vector)
            case "items":
                numbers = self._numbers(self._random.randint(2, 128))
                outcomes = await client.embed_items([self._text(number) for number in numbers], timeout=timeout)
                for number, outcome in zip(numbers, outcomes, strict=True):
                    self._settle(number, outcome)
            case _:
                await self._stream(client)

    async def _stream(self, client: runed.AsyncClient) -> None:
        numbers = self._numbers(self._random.randint(50, 600))
        seen: Counter[int] = Counter()
        items = ((index, self._text(number)) for index, number in enumerate(numbers))
        async with aclosing(client.embed_stream(items)) as results:
            async for index, outcome in results:
                seen[index] += 1
                self._settle(numbers[index], outcome)
        self._outcome.doubled += seen.total() - len(seen)
        if len(seen) < len(numbers):
            self._outcome.lost["text of a stream"] += len(numbers) - len(seen)

    def _numbers(self, texts: int) -> Sequence[int | None]:
        """Choose texts by number. None stands for a text that no model reads."""
        return [self._number() for _ in range(texts)]

    def _number(self) -> int | None:
        dice = self._random.random()
        if dice < _WRONG:
            return None
        if dice < _WRONG + _KNOWN:
            return self._random.choice(list(self._known))
        self._next += 1
        return self._next

    def _text(self, number: int | None) -> str:
        if number is not None:
            return self._model.text(number)
        return self._random.choice([" ", "a\0b", "far too long " * 1000])

    def _settle(self, number: int | None, outcome: runed.Embedding | runed.errors.RunedError) -> None:
        if isinstance(outcome, runed.Embedding):
            self._check(number, outcome.vector)
        else:
            self._outcome.refused[outcome.reason] += 1

    def _check(self, number: int | None, vector: NDArray[np.float32]) -> None:
        assert number is not None, "a text that no model reads got a vector"
        self._outcome.answered += 1
        if number in self._known:
            self._outcome.worst = min(self._outcome.worst, float(vector @ self._known[number]))
        elif number % _KEPT_EVERY == 0:
            self._outcome.kept[number] = np.array(vector)


def _worst_of_kept(lab: Lab, kept: Mapping[int, NDArray[np.float32]]) -> float:
    """Compare vectors with those that a raw server with one slot computes for each text alone."""
    with lab.raw(1) as target, target.connect() as client:
        return min(float(vector @ client.embed(lab.model.text(number))) for number, vector in kept.items())
