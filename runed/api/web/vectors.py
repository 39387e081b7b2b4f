"""Vectors as JSON."""

from __future__ import annotations

import msgspec
import numpy as np

from runed.domain.requests import EmbedAnswer, Embedding
from runed.errors import RunedError
from runed.float_json import write_floats
from runed.turns import breathe_before


def numbers(item: Embedding | RunedError) -> msgspec.Raw:
    """Return the vector of a text as an array of JSON. Python's own numbers would take four times the memory."""
    assert isinstance(item, Embedding)  # errors of single items were not requested
    return msgspec.Raw(write_floats(np.frombuffer(item.vector, "<f4")))


async def all_numbers(answer: EmbedAnswer) -> list[msgspec.Raw]:
    """Return the vectors of all texts as arrays of JSON."""
    vectors: list[msgspec.Raw] = []
    for index, item in enumerate(answer.items):
        await breathe_before(index)  # 2,048 vectors of 1,024 numbers take half a second
        vectors.append(numbers(item))
    return vectors
