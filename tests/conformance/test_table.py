"""The comparison finds every difference between answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.table import differences, violations
from tests.support import Golden

Json = Any

GOLDEN = Golden(texts=["a", "b"], tokens=[1, 2], vectors=np.array([[0.6, 0.8], [1, 0]], dtype=np.float32))
OTHERS = {"other": {"result": {"vector": [0.6, 0.8]}}}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (7, 7),
        (0, None),
        ("", None),
        (None, None),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"$any": True}, "x"),
        ({"$golden": 0}, [0.6, 0.8]),
        ({"$golden": 0, "dimensions": 1}, [1.0]),
        ({"$like": "other"}, [0.6, 0.8]),
        ({"$times": 2, "$each": {"a": 1}}, [{"a": 1}, {"a": 1}]),
    ],
)
def test_what_was_expected(expected: Json, actual: Json) -> None:
    assert list(violations(expected, actual, GOLDEN, OTHERS)) == []


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (7, 8),
        (7, None),
        ("x", ""),
        (None, {"reason": "EMPTY_TEXT"}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, None),
        ({"a": 1}, [1]),
        ([1], [1, 2]),
        ([], [1]),
        ([1], None),
        ({"$any": True}, ""),
        ({"$golden": 0}, None),
        ({"$golden": 0}, [0.8, 0.6]),
        ({"$golden": 0}, [0.3, 0.4]),
        ({"$golden": 0}, [0.6, 0.8, 0.0]),
        ({"$golden": 0, "dimensions": 1}, [0.6, 0.8]),
        ({"$like": "other"}, [1.0, 0.0]),
        ({"$times": 2, "$each": {"a": 1}}, [{"a": 1}, {"a": 2}]),
        ({"$times": 2, "$each": {"a": 1}}, [{"a": 1}]),
    ],
)
def test_what_was_not_expected(expected: Json, actual: Json) -> None:
    assert list(violations(expected, actual, GOLDEN, OTHERS))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "c": 3}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"cached": True}, {"cached": False}, True),
        ({"items": [{"a": ""}]}, {"items": [{"a": None}]}, True),
        ({"items": [1]}, {"items": [1, 2]}, False),
        ({"error": {"reason": "A"}}, {"error": {"reason": "B"}}, False),
        ({"error": {"metadata": {"index": "0"}}}, {"error": {"metadata": {"index": "1"}}}, False),
        ({"vector": [0.1]}, {"vector": [0.10000000149011612]}, True),  # the same float32
        ({"vector": [0.1]}, {"vector": [0.10000001]}, False),  # the next float32
    ],
)
def test_what_two_drivers_tell(one: Json, other: Json, same: bool) -> None:  # noqa: FBT001 # a column of the table
    assert (not list(differences(one, other))) == same
