"""Compares two answers of an engine to the same question: 1 if they are equal, and less the more they differ."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from operator import mul


def cosine(one: bytes, other: bytes) -> float:
    """Return the cosine of two float32 vectors; NaN if there is none, such as of different lengths."""
    if len(one) != len(other):
        return math.nan
    a, b = memoryview(one).cast("f"), memoryview(other).cast("f")
    norms = math.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / norms if norms else math.nan


def score_likeness(one: bytes, other: bytes) -> float:
    """Compare two scores of a reranker, each one float32.

    Returns:
        1 minus the square of their relative difference. So it is as sensitive as a cosine, which is 1 minus half of the square
        of a small angle. NaN for bytes that are no score.
    """
    if not len(one) == len(other) == _SCORE.size:
        return math.nan
    (a,), (b,) = _SCORE.unpack(one), _SCORE.unpack(other)
    return 1 - float((a - b) / (1 + abs(a))) ** 2


_SCORE = struct.Struct("<f")


def _dot(one: Iterable[float], other: Iterable[float]) -> float:
    return sum(map(mul, one, other), 0.0)
