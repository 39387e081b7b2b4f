"""A cached vector, and its key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

ENTRY_OVERHEAD_BYTES = 720
"""Bytes of memory of an entry besides the values of its vector: key, object headers, two integers, and places in the three
tables of `LRUCache`. Measured: 380 to 790 bytes, depending on the load of the tables."""


@dataclass(frozen=True, slots=True)
class CachedVector:
    """The vector of a text, and the length of the text.

    Attributes:
        vector: Little-endian float32 values of L2 norm 1, in the model's native dimensions.
        tokens: The number of tokens that the model read, including those of the prompt and special tokens.
        total_tokens: The number of tokens before the text was cut.
    """

    vector: bytes
    tokens: int
    total_tokens: int

    @property
    def size(self) -> int:
        """The bytes that the entry takes in memory, including key and tables."""
        return len(self.vector) + ENTRY_OVERHEAD_BYTES


def cache_key(fingerprint: str, prompt: str, truncate: str, text: str) -> bytes:
    """Return a key that covers everything that a vector depends on.

    A lone surrogate is encoded unchanged. A text with one is refused elsewhere.

    Args:
        fingerprint: The name of the vector space: the model, and everything else that is the same for all texts.
        prompt: The prompt, which stands in front of the text.
        truncate: The way in which a text that is too long is cut.
        text: The text.

    Returns:
        A SHA-256 of 32 bytes. Different arguments give different keys, even if their concatenations are equal.
    """
    digest = hashlib.sha256()
    for part in (fingerprint, prompt, truncate, text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
