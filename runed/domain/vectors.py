"""Shortens vectors to fewer dimensions than the model's."""

from __future__ import annotations

import numpy as np

from runed.errors import BackendFaultError


def shorten(vector: bytes, dimensions: int) -> bytes:
    """Keep the first values of a vector, scaled to L2 norm 1 again (Matryoshka).

    Args:
        vector: Little-endian float32 values of L2 norm 1.
        dimensions: The number of values to keep. The number of all values leaves the vector unchanged.

    Returns:
        Little-endian float32 values.

    Raises:
        BackendFaultError: The values to keep are all 0, so that they have no direction.
    """
    if 4 * dimensions == len(vector):
        return vector
    head = np.frombuffer(vector, "<f4", dimensions).astype(np.float64)
    norm = np.linalg.norm(head)
    if norm == 0:
        raise BackendFaultError(f"the first {dimensions} values of the vector are all 0; ask for more dimensions")
    return (head / norm).astype("<f4").tobytes()
