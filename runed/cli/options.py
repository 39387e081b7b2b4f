"""Types of options that several commands share. argparse turns their errors into a usage message."""

from __future__ import annotations

import argparse
import math

from runed.errors import SettingsError, quoted
from runed.setting_values import duration as parse_duration

_MOST = 1_000_000_000
"""The largest whole number of an option. It fits into every field of the contract."""

_MOST_SECONDS = 1_000_000_000
"""The most seconds of an option. The system waits for 292 years at most, and a message tells 68 years."""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option --json of a command that tells one thing."""
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def whole_number(value: str, least: int = 0) -> int:
    """Parse a whole number from `least` to `_MOST`."""
    # The digits are counted first, since int() refuses thousands of digits with another error.
    if value.isascii() and value.isdigit() and len(value) <= len(str(_MOST)) and least <= int(value) <= _MOST:
        return int(value)
    raise argparse.ArgumentTypeError(f"{quoted(value)} is not a whole number of at least {least}, at most {_MOST}")


def positive_number(value: str) -> int:
    """Parse a whole number from 1 to `_MOST`."""
    return whole_number(value, 1)


def seconds(value: str) -> float:
    """Parse a number of seconds above 0, at most `_MOST_SECONDS`."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= _MOST_SECONDS:  # nor NaN
        raise argparse.ArgumentTypeError(f"{quoted(value)} is not a number of seconds above 0, at most {_MOST_SECONDS}")
    return number


def duration(value: str) -> float:
    """Parse a duration above 0, such as "10m", in seconds."""
    try:
        number = parse_duration(value, "")
    except SettingsError:
        number = 0.0
    if not number:
        raise argparse.ArgumentTypeError(f"{quoted(value)} is not a duration above 0, such as 90s, 10m or 1h30m")
    return number
