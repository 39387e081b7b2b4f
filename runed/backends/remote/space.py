"""The space of an engine's vectors, known by the vectors of four texts. The name of a remote model proves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from runed.files import read_record, write_atomically

TEXTS = (
    "The harbour lay silent under the first snow of the year.",
    "def add(a, b): return a + b  # 2 + 3 = 5",
    "Wie komme ich vom Bahnhof zum Museum? 美术馆在哪里？",  # noqa: RUF001 # the mark of the language
    "सभी मनुष्यों को अधिकार हैं, 모든 인간은 자유롭다.",
)
"""The texts of a probe: prose, code, two other languages, and two that engines of one model split into different tokens. Never
change one: fingerprints are made of their vectors."""

AGREEMENT = 0.9999
"""The least cosine of two vectors of one text in one space. Engines round differently; another quantization has less."""

_DIGITS = 3
"""Digits that a fingerprint has of each value."""


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """The space of the vectors of a remote model, as it is kept in a home.

    Attributes:
        name: The hexadecimal name, of which the fingerprint is made.
        url: Where the engine answered.
        model: The name of the model there.
        digest: What the engine tells of the content of the model, or "".
        dim: The number of values of a vector.
        max_tokens: The most tokens of a text.
        vectors: The vectors of `TEXTS`, as little-endian float32.
    """

    name: str
    url: str
    model: str
    digest: str
    dim: int
    max_tokens: int
    vectors: bytes

    def agrees(self, vectors: Sequence[bytes]) -> bool:
        """Return whether other vectors of `TEXTS` lie in this space."""
        return len(self.vectors) == sum(map(len, vectors)) and agree(self.vectors, b"".join(vectors), len(vectors))


def agree(ours: bytes, theirs: bytes, count: int, *, least: float = AGREEMENT) -> bool:
    """Return whether `count` vectors agree pair by pair, with cosines of `least` or more."""
    one, other = (np.frombuffer(data, "<f4").reshape(count, -1).astype(np.float64) for data in (ours, theirs))
    # Norms of almost 1 are not exact enough here.
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return bool((np.einsum("ij,ij->i", one, other) / norms).min() >= least)


def space_of(
    vectors: Sequence[bytes], *, url: str, model: str, digest: str, max_tokens: int, kept: Space | None = None
) -> Space:
    """Return the space of some vectors of `TEXTS`.

    Args:
        vectors: The vectors, of norm 1.
        url: Where the engine answered.
        model: The name of the model there.
        digest: What the engine tells of the content of the model.
        max_tokens: The most tokens of a text.
        kept: The space of earlier. If the vectors lie in it, it keeps its name: engines round differently from day to day, and
            a rounded value may flip.
    """
    dim = len(vectors[0]) // 4
    if kept is not None and (kept.model, kept.digest) == (model, digest) and kept.agrees(vectors):
        return msgspec.structs.replace(kept, url=url, max_tokens=max_tokens)
    joined = b"".join(vectors)
    digits = np.rint(np.frombuffer(joined, "<f4").astype(np.float64) * 10**_DIGITS).astype("<i4")
    facts = "\0".join(("remote", model, digest, str(dim))).encode()
    name = hashlib.sha256(facts + b"\0" + digits.tobytes()).hexdigest()
    return Space(name=name, url=url, model=model, digest=digest, dim=dim, max_tokens=max_tokens, vectors=joined)


def load_space(path: Path) -> Space | None:
    """Return the space that a home has kept; None if there is none."""
    return read_record(path, Space)


def keep_space(path: Path, space: Space) -> None:
    """Keep a space in a home."""
    write_atomically(path, msgspec.json.encode(space))
