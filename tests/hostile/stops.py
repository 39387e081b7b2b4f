"""Attacks of one peer, and of eight, that try to stop the daemon's loop for all others."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.arena import Arena, Measured, attack
from tests.hostile.attacks import ATTACKS as OF_A_PEER
from tests.hostile.measure import measure, memory

LONGEST_WAIT = {1: 0.5, 8: 1.0}
"""Seconds that another client may wait, by the number of peers."""

_QUICK = {"rapid reset"}


def _by(name: str, peers: int) -> Callable[[Arena], Measured]:
    def run(arena: Arena) -> Measured:
        daemon = arena.daemon
        daemon.call("Embed", {"text": "cached"})
        before = memory(daemon.process.pid)
        seen = measure(daemon.socket, daemon.process.pid, name, peers=peers)
        text = f"longest wait {seen.wait:.2f} s in {seen.seconds:.1f} s, {(seen.rss - before) / 2**20:.0f} MiB more"
        return Measured(text, seen.wait <= LONGEST_WAIT[peers], time=True)

    return run


for _name in OF_A_PEER:
    for _peers, _bar in LONGEST_WAIT.items():
        attack(
            "11",
            f"{_peers} peer{'s' * (_peers > 1)}: {_name}",
            f"another client waits {_bar:g} s at most",
            slow=_peers > 1 or _name not in _QUICK,
        )(_by(_name, _peers))
