"""A run of the fuzzer: a number of inputs for each target. All follow from the seed and the corpus at the start."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.fuzz.corpus import save_input
from tests.fuzz.files import FILE_TARGETS
from tests.fuzz.outcome import Outcome, Plan
from tests.fuzz.read import crash_of, fuzz_files
from tests.fuzz.send import Victim, fuzz_wire
from tests.fuzz.wire import WIRE_TARGETS
from tests.support import FIXTURES, running_daemon
from tools.engine import programs_folder


def fuzz(plan: Plan, *, settle: float = 2.0) -> Outcome:
    """Run.

    Args:
        plan: The seed, and the inputs.
        settle: Seconds after the end at which the daemon's memory is looked at.
    """
    outcome = Outcome(plan.seed)
    began = time.monotonic()
    fuzz_files(plan, outcome)
    if any(plan.inputs.get(target) for target in WIRE_TARGETS):
        fuzz_wire(plan, outcome, settle)
    outcome.seconds = time.monotonic() - began
    return outcome


def save(outcome: Outcome, findings: Path, grown: Path) -> None:
    """Keep the findings, and the inputs with a new behaviour."""
    for finding in outcome.findings:
        path = save_input(findings / finding.target, finding.data)
        say(f"{path}: {finding.what}")
    for target, inputs in outcome.new.items():
        for data in inputs:
            save_input(grown / target, data)


def replay(target: str, data: bytes) -> str:
    """Try one input again. Return the broken promise, "" for none."""
    if target in FILE_TARGETS:
        word = crash_of(target, data)
        return word[1:] if word.startswith("!") else ""
    with running_daemon(programs_folder() / "llama-server", FIXTURES / "tiny-qwen3.f32.gguf") as daemon:
        return Victim(daemon).broken_by(data)


def say(line: str) -> None:
    """Tell what is going on."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
