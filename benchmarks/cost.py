"""Processor time of the daemon's own process for a text, whatever its engine and its clients need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TypeVar

import grpc
import psutil
from runed_proto.runed.v1.runed_pb2 import EmbedRequest, EmbedResponse

from benchmarks.lab import Lab
from benchmarks.results import Row

T = TypeVar("T")

_LIST = 64
"""Texts of a list."""

_WARM_UP = 0.1
"""Share of the calls, at the start, that is not counted."""


def measure_cost(lab: Lab, *, calls: int = 3000) -> list[Row]:
    """Measure single texts, cached and new, and lists of new texts. One client sends one call after the other."""
    cached = lab.fresh_texts(10)
    again = cycle(cached)
    lists = calls // 40
    with lab.daemon.connect() as client, grpc.insecure_channel(f"unix:{lab.daemon.target.socket}") as channel:
        client.embed_batch(cached)
        embed = channel.unary_unary(
            "/runed.v1.RunedService/Embed",
            request_serializer=EmbedRequest.SerializeToString,
            response_deserializer=EmbedResponse.FromString,
        )
        new = lab.fresh_texts(calls // 4)
        many = [lab.fresh_texts(_LIST) for _ in range(lists)]
        return [
            _row("a cached text, over HTTP/1.1", 0.20, _cost(lab, client.embed, [next(again) for _ in range(calls)])),
            _row(
                "a cached text, over gRPC",
                0.45,
                _cost(lab, lambda text: embed(EmbedRequest(text=text), timeout=60), [next(again) for _ in range(calls)]),
            ),
            _row("a new text beside the working engine", 0.60, _cost(lab, client.embed, new)),
            _row(f"a new text in lists of {_LIST}", 0.08, _cost(lab, client.embed_batch, many) / _LIST),
        ]


def _cost(lab: Lab, call: Callable[[T], object], arguments: Sequence[T]) -> float:
    """Return the milliseconds of a processor for one call."""
    process = psutil.Process(lab.daemon.running.process.pid)
    warm_up = int(len(arguments) * _WARM_UP)
    for argument in arguments[:warm_up]:
        call(argument)
    before = process.cpu_times()
    for argument in arguments[warm_up:]:
        call(argument)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return spent * 1000 / (len(arguments) - warm_up)


def _row(name: str, most: float, cost: float) -> Row:
    return Row(f"daemon's processor time: {name}", f"{cost:.2f} ms", "-", "-", f"at most {most:.2f} ms", cost <= most)
