"""One table of calls through the clients of all languages, over every protocol of each client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.drivers import DRIVERS, Drivers
from tests.conformance.table import differences, read_calls, violations
from tests.support import Golden, RunningDaemon, running_daemon

SETTINGS: dict[str, dict[str, str]] = {"tiny-qwen3": {"RUNED_CTX_SIZE": "512"}, "minilm": {}}
"""Settings of the daemon for each model of the table. The table relies on these limits."""


@pytest.fixture(params=SETTINGS)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def golden(model: str, tiny_golden: Golden, minilm_golden: Golden) -> Golden:
    return {"tiny-qwen3": tiny_golden, "minilm": minilm_golden}[model]


@pytest.fixture
def daemon(
    model: str, tmp_path: Path, *, llama_server: Path, tiny_qwen3: Path, minilm: Path, reranker: Path
) -> Iterator[RunningDaemon]:
    """A daemon of this module, since the calls change its centroids. It has a reranker, too."""
    path = {"tiny-qwen3": tiny_qwen3, "minilm": minilm}[model]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"version": 1, "models": {"reranker": {"path": str(reranker), "kind": "rerank"}}}))
    with running_daemon(llama_server, path, RUNED_CONFIG=str(config), **SETTINGS[model]) as daemon:
        yield daemon


def test_all_drivers_answer_as_the_table_says_and_alike_bit_for_bit(
    model: str, golden: Golden, daemon: RunningDaemon, drivers: Drivers
) -> None:
    calls = read_calls(model, golden)
    lines = [call.line for call in calls]
    answers = {driver: drivers.run(*driver, daemon.socket, lines) for driver in DRIVERS}
    wrong = []
    reference = answers[DRIVERS[0]]
    for driver, given in answers.items():
        assert list(given) == [call.id for call in calls], driver
        for call in calls:
            wrong += [f"{driver} {it}" for it in violations(call.expected, given[call.id], golden, given, call.id)]
            wrong += [f"{driver} {it}" for it in differences(reference[call.id], given[call.id], call.id)]
    assert not wrong, "\n".join(wrong)
