"""A row of a job's output, and the space that all its vectors lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from runed.errors import RunedError

if TYPE_CHECKING:
    from runed.client.types import Embedding


class JobSpace(msgspec.Struct, frozen=True):
    """The space that all vectors of a job lie in.

    Attributes:
        fingerprint: The name of the space. Vectors of different spaces cannot be compared.
        model_identity: The name of the model's file.
        dim: The number of values of each vector.
    """

    fingerprint: str
    model_identity: str
    dim: int


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one text.

    Attributes:
        index: The position of the text in the input, from 0.
        id: The caller's name of the text, as JSON; empty if it has none.
        origin: The place of the text in the input, for error messages.
        inputs: A hash of all texts and ids up to this one; see `runed.jobs.ordering.link`.
        outcome: The text's vector, or its error.
    """

    index: int
    id: bytes
    origin: str
    inputs: bytes
    outcome: Embedding | RunedError
