"""Reranking against a raw `llama-server --rerank` with the same model and flags."""

from __future__ import annotations

import statistics

from benchmarks.lab import Daemon, Lab, say
from benchmarks.load import Target, rank_job
from benchmarks.models import RERANKER
from benchmarks.results import Row, median_ms

_MANY, _FEW = 32, 8
"""Documents of a query: for the speed, and for a single query that somebody waits for."""

_NAME = "reranker"


def measure_rerank(lab: Lab) -> list[Row]:
    """Measure one client that ranks documents, by runed and by raw in turn."""
    queries = max(2, lab.effort.bulk_texts // _MANY // 4)
    ours: list[float] = []
    theirs: list[float] = []
    with (
        Daemon(lab.model, others={_NAME: {"path": str(RERANKER), "kind": "rerank"}}) as daemon,
        lab.raw_reranker(daemon.argv_of(_NAME)) as server,
    ):
        raw = Target("raw", server.socket, raw=True)
        for _ in range(lab.effort.slices):
            for target, rates in ((raw, theirs), (daemon.target, ours)):
                seconds = lab.load.run(rank_job, target, lab.model, lab.fresh(), queries=queries, documents=_MANY)
                rates.append(queries * _MANY / sum(seconds))
            say(f"  rerank: raw {theirs[-1]:.1f}, runed {ours[-1]:.1f} pairs/s")
        calls = lab.effort.single_calls // 4
        waits = [
            lab.load.run(rank_job, target, lab.model, lab.fresh(), queries=calls, documents=_FEW)
            for target in (daemon.target, raw)
        ]
    mine, yardstick = statistics.median(ours), statistics.median(theirs)
    single, bare = (median_ms(each) for each in waits)
    return [
        Row(
            f"one client that ranks {_MANY} documents a query, one query after the other",
            f"{mine:.1f} pairs/s",
            f"{yardstick:.1f} pairs/s",
            f"x {mine / yardstick:.2f}",
            "-",
            passed=True,
        ),
        Row(
            f"one query with {_FEW} documents, p50",
            f"{single:.1f} ms",
            f"{bare:.1f} ms",
            f"{single - bare:+.1f} ms (x {single / bare:.2f})",
            "-",
            passed=True,
        ),
    ]
