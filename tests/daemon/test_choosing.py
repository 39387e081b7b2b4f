"""Which engine a comparison chooses."""

from __future__ import annotations

import struct
from array import array

import pytest

from runed.backends.comparing import DISPUTED, SCRIPTS, Trial
from runed.backends.measuring import Speed
from runed.bootstrap import EngineBuilds
from runed.daemon.choosing import judge
from runed.domain.model import ModelInfo

MODEL = ModelInfo("sha256:0", "mini", "bert", 2, 512, "mean", "F32", "0")
BUILDS = EngineBuilds(llama_server="b1", onnx="o1", processors="p")


def trial(rate: float) -> Trial:
    """Return the trial of an engine with some texts a second."""
    speed = Speed(lone_seconds=0.01, batch_texts=8, batch_seconds=8 / rate, texts_per_second=rate, tokens_per_second=20 * rate)
    tokens = [array("i", [1])] * (len(SCRIPTS) + len(DISPUTED))
    return Trial(tokens[: len(SCRIPTS)], tokens[len(SCRIPTS) :], (struct.pack("<2f", 1.0, 0.0),) * len(SCRIPTS), speed)


@pytest.mark.parametrize(
    ("rates", "chooses_onnx", "is_unsure"),
    [
        ([(100, 111), (90, 130)], True, False),
        ([(100, 109), (100, 90)], False, False),
        ([(20, 44), (33, 33)], False, True),
        ([(33, 33), (20, 44)], False, True),
    ],
)
def test_onnx_runtime_has_to_win_each_round(rates: list[tuple[float, float]], *, chooses_onnx: bool, is_unsure: bool) -> None:
    rounds = [(trial(llama), trial(onnx)) for llama, onnx in rates]
    result = judge(rounds, model=MODEL, builds=BUILDS)
    assert (result.chooses_onnx, result.is_unsure) == (chooses_onnx, is_unsure)
    assert (result.llama_server_rate, result.onnx_rate) == (max(one for one, _ in rates), max(two for _, two in rates))
    assert ("two measurements on a busy machine disagreed" in result.reason_for("llama-server")) is is_unsure
