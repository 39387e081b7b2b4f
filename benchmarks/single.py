"""One short text at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.lab import Lab
from benchmarks.results import Row, median_ms

_WARM_UP = 20


def measure_single(lab: Lab) -> list[Row]:
    """Measure the sync client against the raw server. They take turns, so that a drift of the machine's speed hits both."""
    ours: list[float] = []
    theirs: list[float] = []
    with lab.raw_server() as server, lab.daemon.connect() as client, server.connect() as raw:
        for text in lab.fresh_texts(lab.effort.single_calls + _WARM_UP):
            ours.append(_time(client.embed, text))
            theirs.append(_time(raw.embed, text))
    extra, bar = median_ms(ours[_WARM_UP:]) - median_ms(theirs[_WARM_UP:]), lab.model.bars.single_ms
    return [
        Row(
            "one short text, sync client, p50",
            f"{median_ms(ours[_WARM_UP:]):.2f} ms",
            f"{median_ms(theirs[_WARM_UP:]):.2f} ms",
            f"{extra:+.2f} ms (x {median_ms(ours[_WARM_UP:]) / median_ms(theirs[_WARM_UP:]):.2f})",
            f"at most {bar:g} ms over raw",
            extra <= bar,
        )
    ]


def measure_cached(lab: Lab) -> list[Row]:
    """Measure a text that was embedded before."""
    with lab.daemon.connect() as client:
        texts = lab.fresh_texts(10)
        client.embed_batch(texts)
        seconds = [_time(client.embed, text) for text in texts * (lab.effort.single_calls // len(texts))]
    return [
        Row(
            "a cached text, sync client, p50",
            f"{median_ms(seconds):.2f} ms",
            "-",
            "-",
            "at most 2 ms",
            median_ms(seconds) <= 2,
        )
    ]


def _time(embed: Callable[[str], object], text: str) -> float:
    began = time.perf_counter()
    embed(text)
    return time.perf_counter() - began
