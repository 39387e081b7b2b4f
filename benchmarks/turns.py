"""Two models in turn, with room for one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

import runed
from benchmarks.lab import Daemon, Lab, say
from benchmarks.load import Target
from benchmarks.models import TINY
from benchmarks.results import Row, percentile
from tests.support import Golden

CLIENTS = 8
SECONDS = 300.0

_TEXTS = 10
"""Texts that a client sends to a model before it goes on to the other one."""

_OTHER = "tiny"

_BAR = 0.9999


@dataclass(slots=True)
class Turns:
    """What the clients got.

    Attributes:
        turns: How often a client went on to the other model.
        loaded: Seconds of each call whose engine was loaded right before.
        to_load: Seconds of the other calls.
        worst: The smallest cosine to a reference vector.
    """

    turns: int = 0
    loaded: list[float] = field(default_factory=list)
    to_load: list[float] = field(default_factory=list)
    worst: float = 1.0

    def add(self, other: Turns) -> None:
        """Add what another client got."""
        self.turns += other.turns
        self.loaded += other.loaded
        self.to_load += other.to_load
        self.worst = min(self.worst, other.worst)


def measure_two_models(lab: Lab, *, seconds: float = SECONDS) -> list[Row]:
    """Let clients go from one model to the other and back, while a load is needed for each change."""
    goldens = {"": Golden.load("minilm.golden.json"), _OTHER: Golden.load("tiny-qwen3.golden.json")}
    settings = {"RUNED_MAX_MODELS": "1", "RUNED_CACHE_SIZE": "0"}
    with Daemon(lab.model, others={_OTHER: {"path": str(TINY)}}, **settings) as daemon:
        before = daemon.engine_starts()
        got = lab.load.run(take_turns, daemon.target, goldens, clients=CLIENTS, seconds=seconds)
        loads = daemon.engine_starts() - before
    texts = len(got.loaded) + len(got.to_load)
    say(f"  two models in turn: {texts:,} texts, {loads} loads for {got.turns} turns")
    name = f"{CLIENTS} clients for {seconds:g} s, {_TEXTS} texts for each of two models in turn, room for one"
    return [
        Row(
            f"{name}: loads of a model",
            f"{loads} for {got.turns} turns",
            "-",
            f"{loads / max(1, got.turns):.2f} a turn, {texts:,} texts",
            "at most 1 a turn",
            loads <= got.turns,
        ),
        Row(
            f"{name}: worst cosine to the reference vectors",
            f"{got.worst:.7f}",
            "-",
            "-",
            f"at least {_BAR}",
            got.worst >= _BAR,
        ),
        Row(
            f"{name}: a text whose model is loaded",
            _percentiles(got.loaded),
            "-",
            f"{len(got.loaded):,} texts",
            "-",
            passed=True,
        ),
        Row(
            f"{name}: a text whose model is not",
            _percentiles(got.to_load),
            "-",
            f"{len(got.to_load):,} texts",
            "-",
            passed=True,
        ),
    ]


def take_turns(target: Target, goldens: Mapping[str, Golden], *, clients: int, seconds: float) -> Turns:
    """Let clients send texts to each model in turn, and compare the vectors with the reference ones."""
    end = time.perf_counter() + seconds
    total = Turns()
    with ThreadPoolExecutor(clients) as pool:
        for got in pool.map(lambda number: _client(target, list(goldens.items()), number, end), range(clients)):
            total.add(got)
    return total


def _client(target: Target, goldens: Sequence[tuple[str, Golden]], number: int, end: float) -> Turns:
    got = Turns()
    with runed.connect(socket_path=target.socket) as client:
        while time.perf_counter() < end:
            name, golden = goldens[(number + got.turns) % len(goldens)]
            got.turns += 1
            for index in range(_TEXTS):
                place = (number + index) % len(golden.texts)
                is_loaded = client.health(model=name).status is runed.Status.OK
                began = time.perf_counter()
                vector = client.embed(golden.texts[place], model=name)
                (got.loaded if is_loaded else got.to_load).append(time.perf_counter() - began)
                reference = golden.vectors[place] / np.linalg.norm(golden.vectors[place])
                got.worst = min(got.worst, float(reference @ vector))
    return got


def _percentiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    return f"p50 {percentile(seconds, 0.5) * 1000:.0f} ms, p99 {percentile(seconds, 0.99) * 1000:.0f} ms"
