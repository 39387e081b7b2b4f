"""Types of options that several commands share."""

from __future__ import annotations

import argparse

import pytest

from runed.cli.options import positive_number, seconds, whole_number


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e300", "1000000001", "soon", ""])
def test_seconds_that_nobody_can_wait_for_are_refused(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of seconds above 0, at most 1000000000"):
        seconds(value)


@pytest.mark.parametrize(("value", "number"), [("0.2", 0.2), ("1e9", 1e9), ("60", 60.0)])
def test_other_seconds_are_accepted(value: str, number: float) -> None:
    assert seconds(value) == number


@pytest.mark.parametrize("value", ["-1", "1.5", "1e9", "٣", "1000000001", "9" * 10_000, ""])
def test_numbers_that_fit_nowhere_are_refused_and_not_repeated_whole(value: str) -> None:
    for parse, least in (whole_number, 0), (positive_number, 1):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"is not a whole number of at least {least}, at most 1000"
        ) as caught:
            parse(value)
        assert len(str(caught.value)) < 250


def test_other_numbers_are_accepted() -> None:
    assert [whole_number("0"), whole_number("007"), positive_number("1000000000")] == [0, 7, 1_000_000_000]
    with pytest.raises(argparse.ArgumentTypeError, match="'0' is not a whole number of at least 1"):
        positive_number("0")
