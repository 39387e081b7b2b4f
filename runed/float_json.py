"""Writes float32 numbers as JSON: by the shortest decimals that are read back as the same float32.

Python writes a number as the shortest decimal of a float64, which has twice as many digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from numpy.typing import ArrayLike


def write_floats(numbers: ArrayLike) -> bytes:
    """Return numbers as an array of JSON.

    Args:
        numbers: One dimension of finite numbers, such as an array of float32, or the values of a protobuf message.
    """
    return orjson.dumps(np.ascontiguousarray(numbers, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)


def shorten_floats(numbers: Sequence[float]) -> list[float]:
    """Return the numbers that any writer of JSON writes as the shortest decimals of these numbers in float32."""
    shortened: list[float] = orjson.loads(write_floats(numbers))
    return shortened
