"""A profile is the one measured on this machine, or else the built-in one. It never makes vectors wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runed.backends.cores import usable_cores
from runed.backends.llama.profile import (
    MAX_SLOTS,
    Measurement,
    Profile,
    Tuning,
    built_in_profile,
    choose_profile,
    store_tuning,
)
from runed.settings import PROFILES

KEY = "llama-server 123 456 x86_64 Some Processor sha256:0123456789abcdef"

TUNED = Profile("balanced", 4, 40, 1)

TUNING = Tuning(
    measured_at="2026-11-22T15:48:55+00:00",
    method="by a test",
    cores=usable_cores(),
    profiles=(TUNED, Profile("throughput", 16, 60, 1)),
    measurements=(
        Measurement(
            slots=4,
            batch_tokens=40,
            threads=1,
            batch_texts=3.5,
            batch_seconds=0.02,
            lone_seconds=0.01,
            texts_per_second=175.0,
            tokens_per_second=1750.0,
        ),
    ),
)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tuning.json"


def choose(tuned: Path, name: str = "balanced", pooling: str = "mean", key: str = KEY) -> Profile:
    return choose_profile(name, pooling=pooling, tuned=tuned, key=key)


@pytest.mark.parametrize(
    ("name", "pooling", "size"),
    [
        ("memory", "mean", (1, 128, 0)),
        ("memory", "last", (1, 63, 60)),
        ("balanced", "mean", (32, 512, 0)),
        ("balanced", "cls", (32, 512, 0)),
        ("balanced", "last", (8, 63, 192)),
        ("throughput", "mean", (32, 512, 0)),
        ("throughput", "cls", (32, 512, 0)),
        ("throughput", "last", (8, 63, 512)),
    ],
)
def test_without_a_measurement_the_built_in_holds(tuned: Path, name: str, pooling: str, size: tuple[int, int, int]) -> None:
    slots, tokens, passes = size
    assert choose(tuned, name, pooling) == Profile(name, slots, tokens, usable_cores(), passes)
    assert not tuned.parent.exists()  # reading makes nothing


def test_a_measurement_holds_for_its_engine_model_and_name(tuned: Path) -> None:
    store_tuning(tuned, KEY, TUNING)
    assert choose(tuned) == TUNED
    assert choose(tuned).tuned_at == TUNING.measured_at
    assert choose(tuned, "memory").tuned_at == ""
    assert choose(tuned, "throughput").slots == 16
    assert choose(tuned, "memory") == built_in_profile("memory", pooling="mean")
    assert choose(tuned, key=KEY.replace("456", "457")) == built_in_profile("balanced", pooling="mean")
    assert tuned.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tuned.parent.iterdir()] == ["tuning.json"]


def test_the_file_tells_when_and_how(tuned: Path) -> None:
    store_tuning(tuned, KEY, TUNING)
    (entry,) = json.loads(tuned.read_text())["tunings"].values()
    assert (entry["measured_at"], entry["method"]) == ("2026-11-22T15:48:55+00:00", "by a test")
    assert entry["measurements"][0]["texts_per_second"] == 175.0


def test_another_measurement_replaces_its_own_and_keeps_the_others(tuned: Path) -> None:
    store_tuning(tuned, KEY, TUNING)
    store_tuning(tuned, "another model", replace(TUNING, profiles=(replace(TUNED, slots=2),)))
    store_tuning(tuned, KEY, replace(TUNING, profiles=(replace(TUNED, slots=3),)))
    assert choose(tuned).slots == 3
    assert choose(tuned, key="another model").slots == 2


def test_a_measurement_without_passes_gets_the_built_in_ones(tuned: Path) -> None:
    store_tuning(tuned, KEY, TUNING)  # as earlier releases did
    assert choose(tuned, "throughput", "last") == replace(TUNING.profiles[1], pass_tokens=512)


def test_a_measurement_of_another_number_of_processors_is_void(tuned: Path) -> None:
    store_tuning(tuned, KEY, replace(TUNING, cores=usable_cores() + 1))
    assert choose(tuned) == built_in_profile("balanced", pooling="mean")


@pytest.mark.parametrize(
    "profile",
    [
        replace(TUNED, slots=0),
        replace(TUNED, slots=MAX_SLOTS + 1),
        replace(TUNED, threads=0),
        replace(TUNED, threads=usable_cores() + 1),
        replace(TUNED, batch_tokens=0),
        replace(TUNED, batch_tokens=64),  # with last-token pooling, vectors would then depend on the other texts of a batch
        replace(TUNED, pass_tokens=100),  # no multiple of a tile
    ],
)
def test_a_profile_that_cannot_be_right_is_not_used(tuned: Path, profile: Profile) -> None:
    store_tuning(tuned, KEY, replace(TUNING, profiles=(profile,)))
    assert choose(tuned, pooling="last") == built_in_profile("balanced", pooling="last")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"tunings": {"a": 1}}', b'{"version": 2}', b'"\xed\xa0\x80"'])
def test_an_unreadable_file_is_as_good_as_none_and_can_be_replaced(tuned: Path, content: bytes) -> None:
    tuned.parent.mkdir(mode=0o700)
    tuned.write_bytes(content)
    assert choose(tuned) == built_in_profile("balanced", pooling="mean")
    store_tuning(tuned, KEY, TUNING)
    assert choose(tuned) == TUNED


def test_a_crash_while_storing_leaves_the_old_file(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_tuning(tuned, KEY, TUNING)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        store_tuning(tuned, KEY, replace(TUNING, profiles=()))
    assert choose(tuned) == TUNED
    assert [path.name for path in tuned.parent.iterdir()] == ["tuning.json"]


def test_every_name_has_a_built_in_profile() -> None:
    assert [built_in_profile(name, pooling="cls").name for name in PROFILES] == ["memory", "balanced", "throughput"]
