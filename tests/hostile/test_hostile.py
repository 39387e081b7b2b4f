"""The attacks that take some seconds. A bar of time is told and not judged, since the machine may be busy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hostile.arena import ATTACKS, Attack
from tests.hostile.table import row, tried

QUICK = [it for it in ATTACKS if not it.slow]


@pytest.mark.slow
@pytest.mark.parametrize("attack", QUICK, ids=[f"{it.item} {it.name}" for it in QUICK])
def test_attack_meets_its_bar(attack: Attack, llama_server: Path) -> None:
    measured = tried(attack)
    told = row(attack, measured, 0.0)
    if measured.ok is None:
        pytest.skip(measured.text)
    if measured.time and not measured.ok:
        sys.stdout.write(f"late, as a busy machine may be: {told}\n")
        return
    assert measured.ok, told


def test_every_item_has_an_attack() -> None:
    assert {int(it.item) for it in ATTACKS} >= {*range(1, 24)}
