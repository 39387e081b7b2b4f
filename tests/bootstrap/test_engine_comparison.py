"""The results of comparing engines are kept by model, and hold for the engines that were compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from runed.bootstrap import EngineBuilds, EngineComparison, keep_comparison, read_comparison
from tests.bad_files import BAD_FILES, put_bad_file

BUILDS = EngineBuilds(llama_server="b1", onnx="onnxruntime-1.0 (graph 1)", processors="some, 2 cores")
MODEL = "ab" * 32


def changed(**changes: str) -> EngineBuilds:
    return msgspec.structs.replace(BUILDS, **changes)


def comparison(**facts: object) -> EngineComparison:
    return msgspec.convert({"model": MODEL, "builds": msgspec.to_builtins(BUILDS)} | facts, EngineComparison)


def test_the_faster_engine_is_chosen_unless_it_cannot_serve() -> None:
    assert comparison(is_faster=True).chooses_onnx
    assert not comparison(is_faster=False).chooses_onnx
    assert not comparison(is_faster=True, objection="other tokens").chooses_onnx


@pytest.mark.parametrize("part", ["llama_server", "onnx", "processors"])
def test_a_result_holds_for_its_engines_and_processors(part: str) -> None:
    assert comparison().holds_for(BUILDS)
    assert not comparison().holds_for(changed(**{part: "another"}))


def test_an_objection_holds_beside_another_llama_server_too() -> None:
    failed = comparison(objection="it died")
    assert failed.holds_for(changed(llama_server="another", processors="another"))
    assert not failed.holds_for(changed(onnx="onnxruntime-1.0 (graph 2)"))


@pytest.mark.parametrize(
    ("hours", "holds"),
    [(0.0, True), (23.0, True), (25.0, False), (-2.0, False)],
    ids=["now", "of today", "of yesterday", "of a clock that was wrong"],
)
def test_a_failure_is_tried_again_after_a_day(hours: float, *, holds: bool) -> None:
    at = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
    died = comparison(objection="it died", compared_at=at)
    assert died.holds_for(BUILDS) is holds
    assert died.tried_again == datetime.fromisoformat(at) + timedelta(days=1)
    for lasting in ({"onnx_rate": 1.0}, {"is_unfit": True}):
        assert comparison(objection="other tokens", compared_at=at, **lasting).holds_for(BUILDS)


@pytest.mark.parametrize("at", ["", "yesterday", "9999-12-31T23:59:59+00:00"])
def test_a_failure_at_no_time_is_tried_again_at_once(at: str) -> None:
    assert not comparison(objection="it died", compared_at=at).holds_for(BUILDS)


def test_the_speeds_are_told_the_chosen_one_first() -> None:
    measured = {"llama_server_rate": 1302.4, "onnx_rate": 2600.0}
    assert comparison(is_faster=True, **measured).figures == "2,600 texts/s, and llama-server 1,302"
    assert comparison(**measured).figures == "1,302 texts/s, and ONNX Runtime 2,600"
    assert comparison(objection="it died").figures == ""


def test_one_result_a_model_is_kept_and_found_by_the_first_digits(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "engine-comparisons.json"
    keep_comparison(path, comparison(is_faster=True))
    keep_comparison(path, comparison(model="cd" * 32))
    keep_comparison(path, comparison(is_faster=False, cosine=0.5))
    found = read_comparison(path, MODEL[:16])
    assert found is not None
    assert (found.is_faster, found.cosine) == (False, 0.5)
    assert read_comparison(path, "ef" * 32) is None
    assert len(msgspec.json.decode(path.read_bytes(), type=list[EngineComparison])) == 2


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_damaged_file_counts_as_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cache" / "engine-comparisons.json"
    put_bad_file(kind, path)
    assert read_comparison(path, MODEL) is None
