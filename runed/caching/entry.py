"""A vector that was computed before, and the key that it is kept under."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

ENTRY_OVERHEAD_BYTES = 720
"""What an entry takes beside the values of its vector: key, object headers, two integers and its places in the three tables of
`LRUCache`. Measured: 380 to 790 bytes, by how full the tables are at the moment."""


@dataclass(frozen=True, slots=True)
class CachedVector:
    """What is known of a text that was computed before.

    Attributes:
        vector: Little-endian float32 values of L2 norm 1, in the model's native dimensions.
        tokens: The number of tokens that the model read, those of the prompt and special ones included.
        total_tokens: The number of tokens before anything was cut off.
    """

    vector: bytes
    tokens: int
    total_tokens: int

    @property
    def size(self) -> int:
        """The bytes of memory that it takes in a cache, key and tables included."""
        return len(self.vector) + ENTRY_OVERHEAD_BYTES


def cache_key(fingerprint: str, prompt: str, truncate: str, text: str) -> bytes:
    """Name a vector by all that it depends on.

    Lone surrogates are taken as they are, each a value of its own: a text that holds one is refused elsewhere, not here.

    Args:
        fingerprint: Names the model and everything else that is the same for all texts.
        prompt: What is put in front of the text.
        truncate: How a text that is too long is cut.
        text: The text.

    Returns:
        A SHA-256 of 32 bytes; different arguments give different keys, also where their concatenations are equal.
    """
    digest = hashlib.sha256()
    for part in (fingerprint, prompt, truncate, text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
