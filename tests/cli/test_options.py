"""Types of options that several commands share."""

from __future__ import annotations

import argparse

import pytest

from runed.cli.options import seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e300", "1000000001", "soon", ""])
def test_seconds_that_nobody_can_wait_for_are_refused(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of seconds above 0, at most 1000000000"):
        seconds(value)


@pytest.mark.parametrize(("value", "number"), [("0.2", 0.2), ("1e9", 1e9), ("60", 60.0)])
def test_other_seconds_are_accepted(value: str, number: float) -> None:
    assert seconds(value) == number
