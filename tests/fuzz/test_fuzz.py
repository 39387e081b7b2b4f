"""A short run of the fuzzer, with the corpus of the repository alone, so that each run tries the same inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.corpus import KEPT, shrink
from tests.fuzz.files import FILE_TARGETS
from tests.fuzz.outcome import Plan, share
from tests.fuzz.run import fuzz, replay
from tests.fuzz.wire import WIRE_TARGETS


@pytest.mark.slow
def test_2000_broken_files_are_answered() -> None:
    outcome = fuzz(Plan(1, share(2000, list(FILE_TARGETS))))
    assert not outcome.findings, "\n".join(outcome.lines())
    assert outcome.inputs.total() == 2000


@pytest.mark.slow
def test_400_broken_requests_are_answered(llama_server: Path) -> None:
    outcome = fuzz(Plan(1, share(400, list(WIRE_TARGETS))))
    assert not outcome.findings, "\n".join(outcome.lines())
    assert outcome.inputs.total() == 400
    assert outcome.waits.calls
    assert not outcome.waits.failures


@pytest.mark.parametrize("path", sorted(path for target in FILE_TARGETS for path in (KEPT / target).glob("*")), ids=str)
def test_input_that_broke_a_reader_once_is_answered(path: Path) -> None:
    assert not replay(path.parent.name, path.read_bytes())


@pytest.mark.slow
def test_same_seed_makes_the_same_inputs() -> None:
    outcomes = [fuzz(Plan(7, {"csv": 50})) for _ in range(2)]
    assert outcomes[0].new == outcomes[1].new
    assert outcomes[0].new["csv"]
    assert outcomes[0].new != fuzz(Plan(8, {"csv": 50})).new


def test_finding_is_made_small() -> None:
    assert shrink(b"a lot of harmless bytes before the bad! one, and after it", lambda data: b"bad!" in data) == b"bad!"
