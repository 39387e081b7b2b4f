"""Sends inputs to a daemon, while another client calls it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from runed.processes import resident_bytes
from tests.fuzz.corpus import MOST_BYTES, load_corpus, shrink
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import Finding, Outcome, Plan
from tests.fuzz.watch import other_client
from tests.fuzz.wire import WIRE_TARGETS, FindingError, WireTarget, converse
from tests.support import FIXTURES, RunningDaemon, running_daemon
from tools.engine import programs_folder

BATCH, CONNECTIONS = 64, 16
"""Inputs that are sent before their answers are looked at, and connections at a time."""

SHRINK_TRIES = 60
"""Inputs that are tried to make a finding small."""

_VARYING = {"timestamp", "connection", "level", "logger", "client"}
"""Members of a line of the log that differ between two of the same kind."""


class Victim:
    """A daemon under attack.

    Args:
        daemon: The daemon.
    """

    def __init__(self, daemon: RunningDaemon) -> None:
        self._daemon = daemon
        self._log_at = daemon.log_path.stat().st_size

    @property
    def end(self) -> int | None:
        """The exit code of the daemon; None while it lives."""
        return self._daemon.process.poll()

    @property
    def memory(self) -> int:
        """The resident memory of the daemon, in bytes."""
        return resident_bytes(self._daemon.process.pid)

    def send(self, data: bytes) -> tuple[str, str]:
        """Return a word for what the daemon did, and what was wrong about it, "" for nothing."""
        try:
            return converse(self._daemon.socket, data), ""
        except FindingError as error:
            return "", str(error)
        except OSError as error:
            return "", f"{type(error).__name__}: {error.strerror}"

    def logged(self) -> str:
        """Return the next line of the log that tells of a fault of the daemon itself, "" for none."""
        with self._daemon.log_path.open("rb") as file:
            file.seek(self._log_at)
            data = file.read()
        self._log_at += len(data)
        for line in data.splitlines():
            if b"Traceback" in line:
                return "the log has a stack trace"
            if line.startswith(b"{") and b'"error"' in line:
                entry: dict[str, Any] = json.loads(line)
                if entry["level"] == "error":
                    return f"the log has { ({name: entry[name] for name in entry if name not in _VARYING}) }"
        return ""

    def broken_by(self, data: bytes) -> str:
        """Send one input alone, and return the broken promise, "" for none."""
        if self.end is not None:
            return ""
        return self.send(data)[1] or self.logged()


def fuzz_wire(plan: Plan, outcome: Outcome, settle: float) -> None:
    """Send the inputs of a plan.

    Args:
        plan: The plan.
        outcome: Takes what is seen.
        settle: Seconds after the end at which the daemon's memory is looked at.
    """
    with running_daemon(programs_folder() / "llama-server", FIXTURES / "tiny-qwen3.f32.gguf") as daemon:
        victim = Victim(daemon)
        with other_client(daemon.socket) as outcome.waits:
            for name, target in WIRE_TARGETS.items():  # the daemon loads now what it loads once
                for data in target.seeds():
                    with suppress(FindingError):
                        converse(daemon.socket, target.wrap(data, Random(name)))
            warm = most = victim.memory
            for name, target in WIRE_TARGETS.items():
                most = max(most, _send_all(plan, name, target, victim, outcome))
        until = time.monotonic() + settle
        while (after := victim.memory) > warm and time.monotonic() < until:
            time.sleep(0.2)
        outcome.rss = (warm, most, after)


def _send_all(plan: Plan, name: str, target: WireTarget, victim: Victim, outcome: Outcome) -> int:
    """Send all inputs of a target, some at a time. Return the most memory that the daemon had."""
    mutator = Mutator(load_corpus(name, target.seeds(), plan.grown), target.words)
    seen: set[str] = set()
    most = 0
    for start in range(0, plan.inputs.get(name, 0), BATCH):
        made: list[tuple[bytes, bytes]] = []
        for number in range(start, min(start + BATCH, plan.inputs[name])):
            random = plan.random(name, number)
            changed = target.make(mutator, random) if target.make else mutator.make(random)
            made.append((changed, target.wrap(changed, random)))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            told = list(pool.map(victim.send, [data for _, data in made]))
        outcome.inputs[name] += len(made)
        for (changed, _), (word, _) in zip(made, told, strict=True):
            if word and word not in seen and len(changed) <= MOST_BYTES:
                seen.add(word)
                outcome.new.setdefault(name, []).append(changed)
        for finding in _look_into(name, victim, [(data, what) for (_, data), (_, what) in zip(made, told, strict=True)]):
            outcome.add(finding)
        if victim.end is not None:
            break
        most = max(most, victim.memory)
    return most


def _look_into(name: str, victim: Victim, sent: Sequence[tuple[bytes, str]]) -> list[Finding]:
    """Find out which of the inputs that were sent at the same time broke something, and make it small."""
    logged = victim.logged()
    if (code := victim.end) is not None:
        return [Finding(name, f"one of {len(sent)} inputs ended the daemon with code {code}", data) for data, _ in sent]
    findings = []
    for data, what in sent:
        if found := what or (logged and victim.broken_by(data)):
            findings.append(Finding(name, found, shrink(data, partial(_breaks, victim, found), tries=SHRINK_TRIES)))
            logged = "" if found == logged else logged
    if logged:  # no input does it alone
        findings.append(Finding(name, logged, b"".join(data for data, _ in sent)))
    return findings


def _breaks(victim: Victim, what: str, data: bytes) -> bool:
    return victim.broken_by(data) == what
