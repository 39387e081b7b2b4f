"""Tuning measures a real engine with several profiles, leaves out those that fail, and chooses by the measurements."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from runed.backends.base import BatchLimits, pack
from runed.backends.cores import usable_cores
from runed.backends.engine.self_test import CompanyError
from runed.backends.llama.profile import Measurement, PassMeasurement, Profile, Tuning, built_in_profile
from runed.backends.llama.tuning import _Ways, choose_profiles, fastest, tune
from runed.backends.measuring import _check_company, _cut, _micro_batches
from runed.domain.device import Device
from runed.domain.model import ModelInfo
from runed.errors import BackendUnavailableError
from runed.paths import Paths
from runed.settings import PROFILES

TEXTS = [f"text number {number} of some length, as {number * 7919} words are: time year people way day" for number in range(64)]

DEVICE = Device("vulkan", "Vulkan0", "fake device")


def measurement(slots: int, rate: float, batch_seconds: float, **changes: int) -> Measurement:
    return replace(
        Measurement(
            slots=slots,
            batch_tokens=slots * 16,
            threads=2,
            batch_texts=float(slots),
            batch_seconds=batch_seconds,
            lone_seconds=0.010,
            texts_per_second=rate,
            tokens_per_second=rate * 16,
        ),
        **changes,
    )


ALONE, FOUR, EIGHT, SIXTEEN = (
    measurement(1, 90.0, 0.011),
    measurement(4, 190.0, 0.018),
    measurement(8, 250.0, 0.030),
    measurement(16, 300.0, 0.050),
)


def chosen_slots(*measurements: Measurement) -> dict[str, int]:
    return {profile.name: profile.slots for profile in choose_profiles(measurements)}


def test_each_profile_gets_what_it_is_for() -> None:
    near = replace(EIGHT, texts_per_second=280.0)
    assert chosen_slots(SIXTEEN, ALONE, near, FOUR) == {"memory": 1, "balanced": 8, "throughput": 16}
    assert choose_profiles([EIGHT])[0] == Profile("balanced", 8, 128, 2)


def test_balanced_lets_a_single_text_wait_for_three_if_that_costs_little() -> None:
    near, far = replace(EIGHT, texts_per_second=271.0), replace(SIXTEEN, batch_texts=16.0)
    assert chosen_slots(ALONE, FOUR, near, far)["balanced"] == 8
    assert chosen_slots(ALONE, FOUR, replace(near, texts_per_second=269.0), far)["balanced"] == 16
    assert chosen_slots(ALONE, FOUR, replace(near, batch_seconds=0.031), replace(far, batch_seconds=0.032))["balanced"] == 8


def test_no_profile_for_many_texts_is_far_worse_than_the_best_one_of_the_table() -> None:
    # Measured on a noisy machine: a ratio of 3.05 missed the bound of 3.
    alone = replace(ALONE, texts_per_second=159.7, lone_seconds=0.0061, batch_seconds=0.0061)
    eight = replace(EIGHT, texts_per_second=265.9, lone_seconds=0.0100, batch_seconds=0.0305)
    assert chosen_slots(alone, eight) == {"memory": 1, "balanced": 8, "throughput": 8}


def passes(*speeds: tuple[int, float, float]) -> list[PassMeasurement]:
    return [
        PassMeasurement(pass_tokens=tokens, medium_tokens_per_second=medium, long_tokens_per_second=long)
        for tokens, medium, long in speeds
    ]


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([(128, 200, 190), (192, 201, 195), (256, 202, 199), (512, 203, 240)], {60, 128, 512}),
        ([(128, 200, 180), (192, 201, 195), (256, 202, 199), (512, 203, 198)], {60, 192}),
        ([(128, 150, 199), (192, 201, 170), (256, 202, 199), (512, 200, 250)], {60, 256, 512}),
        ([(128, 200, 100), (192, 100, 200)], {60, 192}),  # noise: no size is good at both lengths
        ([(512, 200, 200)], {60, 512}),
        ([], {0}),
    ],
)
def test_a_pass_is_as_small_as_the_speed_of_long_texts_allows(
    measured: list[tuple[int, float, float]], chosen: set[int]
) -> None:
    profiles = choose_profiles([ALONE, EIGHT], passes(*measured))
    assert {profile.pass_tokens for profile in profiles} == chosen
    assert all((profile.pass_tokens in {0, 60}) == (profile.name == "memory" or not measured) for profile in profiles)


def tuning(rate: float) -> Tuning:
    """Return a tuning in which eight slots have the best rate."""
    best = replace(EIGHT, texts_per_second=rate)
    return Tuning(
        measured_at="", method="", cores=2, profiles=(), measurements=(ALONE, best, replace(FOUR, texts_per_second=1.0))
    )


def test_the_present_device_stays_unless_another_is_clearly_faster() -> None:
    assert fastest([tuning(200.0)]) == 0
    assert fastest([tuning(200.0), tuning(150.0)]) == 0
    assert fastest([tuning(200.0), tuning(219.0), tuning(100.0)]) == 0
    assert fastest([tuning(200.0), tuning(221.0), tuning(240.0), tuning(230.0)]) == 2


def test_what_serves_without_a_tuning_is_among_the_ways_on_a_device() -> None:
    info = ModelInfo(identity="", name="", architecture="", dim=1, max_tokens=2048, pooling="last", file_type="f32", sha256="")
    ways = _Ways.of(info, 1000, DEVICE)
    built_in = {built_in_profile(name, pooling="last", device=DEVICE) for name in PROFILES}
    assert {(each.slots, each.batch_tokens) for each in built_in} <= {ways.usual, *ways.others}
    assert ways.threads == [usable_cores()]
    assert not ways.passes


def test_more_than_noise_is_asked_of_a_larger_batch() -> None:
    assert chosen_slots(EIGHT, replace(SIXTEEN, texts_per_second=255.0))["throughput"] == 8
    assert chosen_slots(EIGHT, replace(SIXTEEN, texts_per_second=260.0))["throughput"] == 16


def test_a_profile_that_nothing_fits_is_left_to_the_built_in() -> None:
    assert chosen_slots(SIXTEEN) == {"balanced": 16, "throughput": 16}


def test_micro_batches_keep_the_limits_and_lose_nothing() -> None:
    batches = list(_micro_batches([10, 20, 33, 1, 1, 1, 1, 90, 5], BatchLimits(texts=3, tokens=63)))
    assert batches == [range(3), range(3, 6), range(6, 7), range(7, 8), range(8, 9)]


def test_a_text_is_cut_before_its_last_token() -> None:
    assert _cut(pack([101, 7, 8, 9, 102]), 4) == pack([101, 7, 8, 102])
    assert _cut(pack([101, 7, 102]), 4) == pack([101, 7, 102])


def test_vectors_that_depend_on_company_are_no_measurement() -> None:
    one, other = (bytes.fromhex(each) for each in ("0000803f00000000", "000000000000803f"))
    _check_company([one], [one, other], "an engine")
    with pytest.raises(CompanyError):
        _check_company([one, one], [one, other], "an engine")


def run(
    executable: Path, model: Path, home: Path, *, limit: float = 60.0, force: bool = True
) -> tuple[Tuning, list[tuple[int, int, str]]]:
    reports: list[tuple[int, int, str]] = []
    tuning = tune(
        executable=executable,
        model=model,
        model_sha256="ab" * 32,
        paths=Paths(home),
        ctx_size=256,
        texts=TEXTS,
        seconds=0.02,
        limit=limit,
        report=lambda *report: reports.append(report),
        force=force,
    )
    return tuning, reports


@pytest.fixture
def temporary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files. It must be empty at the end."""
    path = home / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def test_a_way_that_fails_is_left_out_and_nothing_is_left_behind(
    home: Path, llama_server: Path, tiny_qwen3: Path, temporary: Path
) -> None:
    picky = home / "llama-server"
    real = shlex.quote(str(llama_server))
    picky.write_text(f'#!/bin/sh\ncase "$*" in *"--parallel 32"*) echo too many >&2; exit 1;; esac\nexec {real} "$@"\n')
    picky.chmod(0o700)

    others = psutil.Process().children()  # the daemon that the tests of this worker share

    tuning, reports = run(picky, tiny_qwen3, home)

    assert {(each.slots, each.batch_tokens) for each in tuning.measurements} == {(1, 63), (8, 32), (8, 48), (8, 63)}
    assert {each.threads for each in tuning.measurements} <= set(range(1, usable_cores() + 1))
    assert any("32 slots" in remark and "too many" in remark for remark in tuning.remarks)
    assert all(each.texts_per_second > 0 and each.batch_seconds > 0 and each.lone_seconds > 0 for each in tuning.measurements)
    assert next(each.batch_texts for each in tuning.measurements if each.slots == 1) == 1.0
    assert all(1.0 < each.batch_texts <= 8.0 for each in tuning.measurements if each.slots == 8)
    assert next(profile.slots for profile in tuning.profiles if profile.name == "memory") == 1
    assert [each.pass_tokens for each in tuning.passes] == [128, 256]  # with 192, the longest text had no room for a tile
    assert all(each.long_tokens_per_second > 0 < each.medium_tokens_per_second for each in tuning.passes)
    assert next(profile.pass_tokens for profile in tuning.profiles if profile.name == "memory") == 60
    assert [done for done, _, _ in reports] == list(range(len(reports)))
    assert {total for _, total, _ in reports} == {len(reports)}
    (stored,) = json.loads(Paths(home).tuning.read_text())["tunings"].values()
    assert stored["measured_at"] == tuning.measured_at
    assert list(temporary.iterdir()) == []
    assert psutil.Process().children() == others


def test_a_limit_that_is_over_before_the_first_measurement_is_an_error(
    home: Path, llama_server: Path, tiny_qwen3: Path, temporary: Path
) -> None:
    others = psutil.Process().children()
    with pytest.raises(BackendUnavailableError, match=r"could not be measured .* the time of 0\.001 s was over after 0 of"):
        run(llama_server, tiny_qwen3, home, limit=0.001)
    assert not Paths(home).tuning.exists()
    # A thread may still have been making the engine's directories when the time was over.
    assert list(temporary.iterdir()) == []
    assert psutil.Process().children() == others


def test_what_was_measured_beside_other_work_is_not_kept(
    home: Path, temporary: Path, llama_server: Path, tiny_qwen3: Path
) -> None:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        tuning, _ = run(llama_server, tiny_qwen3, home, force=False)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert tuning.is_chance
    assert not Paths(home).tuning.exists()
