"""float32 is written as JSON by its shortest decimals, which are read back as the same numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runed.float_json import shorten_floats, write_floats


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_each_number_is_read_back_as_the_same_float32(numbers: list[float]) -> None:
    back = np.array(json.loads(write_floats(numbers)), np.float32)
    assert back.tobytes() == np.array(numbers, np.float32).tobytes()  # also -0.0


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_no_other_decimal_is_shorter(number: float) -> None:
    [written] = json.loads(write_floats([number]))
    digits = len(np.format_float_scientific(np.float32(number), unique=True, trim="-").lstrip("-").partition("e")[0])
    assert len(np.format_float_scientific(written, unique=True, trim="-").lstrip("-").partition("e")[0]) == digits


def test_bytes_of_a_vector_and_a_row_of_a_matrix_can_be_written() -> None:
    matrix = np.array([[0.1, 0.25], [1e-7, 3.0]], np.float32)
    assert write_floats(np.frombuffer(matrix[0].tobytes(), "<f4")) == b"[0.1,0.25]"
    assert json.loads(write_floats(matrix[:, 0])) == [0.1, 1e-7]  # not contiguous


def test_a_vector_of_384_numbers_takes_less_than_4_9_kilobytes() -> None:
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    assert len(write_floats(vector / np.linalg.norm(vector))) < 4_800


def test_numbers_are_shortened_for_other_writers() -> None:
    assert shorten_floats([float(np.float32(0.1)), 0.5]) == [0.1, 0.5]
    assert json.dumps(shorten_floats([1 / 3])) == "[0.33333334]"
    assert shorten_floats([]) == []


@pytest.mark.parametrize("number", [1e-45, 3.4028235e38, -0.0, 16777216.0])
def test_the_ends_of_the_range(number: float) -> None:
    assert np.float32(shorten_floats([number])[0]) == np.float32(number)
