"""The simulation of a job on many nodes: what must come out where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulate import Outcome, Plan, Simulation, table

PERFECT = Plan(
    nodes=20,
    texts=200_000,
    part_texts=1000,
    spread=0,
    stragglers=0,
    failure_hours=0,
    model_bytes=0,
    dispatch_seconds=0,
)
"""A cluster in which nothing happens."""


def simulate(**changes: float) -> Outcome:
    return Simulation(replace(PERFECT, **changes)).run()  # type: ignore[arg-type] # of the fields' own types


def test_perfect_cluster_takes_the_ideal_time() -> None:
    outcome = simulate()
    assert outcome.hours == pytest.approx(PERFECT.ideal_hours)
    assert (outcome.lost, outcome.deaths, outcome.dispatcher) == (0, 0, 0)


def test_store_shares_its_line() -> None:
    # 20 nodes fetch 1 GB each over a line of 1 GB/s that each of them could use for 0.1 GB/s.
    outcome = simulate(model_bytes=1e9, store_rate=1e9, node_rate=0.1e9)
    assert outcome.last_start == pytest.approx(20)
    assert outcome.hours == pytest.approx(PERFECT.ideal_hours + 20 / 3600)
    assert simulate(model_bytes=1e9, store_rate=1e9, node_rate=0.01e9).last_start == pytest.approx(100)


def test_dispatcher_limits_a_cluster() -> None:
    # 200 parts of 10 s each: a node would be ready before the dispatcher has handed out a part to each.
    outcome = simulate(dispatch_seconds=60)
    assert outcome.hours * 3600 == pytest.approx(200 * 60, rel=0.02)
    assert outcome.dispatcher > 0.98


def test_deaths_lose_work_and_no_part() -> None:
    outcome = simulate(failure_hours=0.05, speculation=False)
    assert outcome.deaths > 0
    assert 0 < outcome.lost < outcome.deaths * PERFECT.part_texts
    assert outcome.hours > PERFECT.ideal_hours


def test_speculation_shortens_the_tail_of_stragglers() -> None:
    slow = {"stragglers": 0.2, "part_texts": 5000}
    with_twins, without = simulate(**slow, speculation=True), simulate(**slow, speculation=False)
    assert with_twins.hours < without.hours
    assert with_twins.lost > without.lost == 0


def test_same_seed_gives_the_same_table() -> None:
    plan = replace(PERFECT, stragglers=0.1, failure_hours=1)
    assert table([("a", plan)]) == table([("a", plan)])
    assert table([("a", plan)]) != table([("a", replace(plan, seed=2))])
