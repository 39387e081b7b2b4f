"""Item 11, as rows of the table: each attack of `attacks` by one peer and by eight, and the longest wait of another client."""

from __future__ import annotations

import time
from functools import partial

from tests.hostile.arena import Arena, Measured, attack
from tests.hostile.attacks import ATTACKS, SERVICE
from tests.hostile.measure import measure, memory

BARS = {1: 0.5, 8: 1.0}
"""The longest wait that is allowed, in seconds, by the number of attackers."""

SETTLE_SECONDS = 30.0
"""Seconds after which the daemon may have a tenth more memory than before."""

QUICK = {
    "gzip of empty members",
    "JSON of 8 million texts",
    "JSON of 2 million unknown keys",
    "text of 30 MiB",
    "protobuf of 16 million texts",
    "rapid reset",
    "tiny chunks",
    "honest Health calls",
}
"""Attacks of one peer that belong to the lane of the tests."""


def _try(arena: Arena, name: str, peers: int) -> Measured:
    daemon = arena.daemon
    with daemon.http() as client:  # what the first calls load is no growth
        client.post(f"http://runed{SERVICE}/Embed", json={"text": ""})
        client.post("http://runed/v1/embeddings", json={"input": "cached"})
    for _ in range(3):
        daemon.call("Embed", {"text": "cached"})
    pid = daemon.process.pid
    before = memory(pid)
    measured = measure(daemon.socket, pid, name, peers=peers)
    deadline = time.monotonic() + SETTLE_SECONDS
    while (after := memory(pid)) > 1.1 * before and time.monotonic() < deadline:
        time.sleep(0.2)
    told = f"{measured.wait:.2f} s, {before >> 20} MiB before, {measured.rss >> 20} at most, {after >> 20} after"
    return Measured(told, measured.wait <= BARS[peers] and after <= 1.1 * before, time=True)


for _peers, _bar in BARS.items():
    for _name in ATTACKS:
        attack(
            "11",
            f"{_name} (peers: {_peers})",
            f"others wait {_bar} s at most; memory is back in {SETTLE_SECONDS:g} s",
            slow=_peers > 1 or _name not in QUICK,
        )(partial(_try, name=_name, peers=_peers))
