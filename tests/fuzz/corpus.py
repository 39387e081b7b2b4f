"""The inputs to begin with: those of the code, those in the repository, and those that earlier runs found on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

KEPT = Path(__file__).with_name("corpus")
"""The folder of inputs that once broke something, with a folder for each target."""

MOST_GROWN = 300
"""Inputs of a target that a run takes from the grown corpus, the smallest first."""

MOST_BYTES = 16 * 1024
"""Bytes of the largest input that joins the grown corpus."""


def load_corpus(target: str, seeds: Iterable[bytes], grown: Path | None) -> list[bytes]:
    """Return the corpus of a target, in an order that depends on its content alone."""
    kept = [path.read_bytes() for path in sorted((KEPT / target).glob("*"))]
    new = [path.read_bytes() for path in sorted((grown / target).glob("*"))] if grown else []
    return list(dict.fromkeys([*seeds, *kept, *sorted(new, key=len)[:MOST_GROWN]]))


def save_input(folder: Path, data: bytes) -> Path:
    """Write an input under a name that follows from its content."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def shrink(data: bytes, breaks: Callable[[bytes], bool], *, tries: int = 200) -> bytes:
    """Return a smaller input that still breaks something: pieces are left out, large ones first, for a number of tries."""
    size = len(data) // 2
    while size and tries > 0:
        start = 0
        while start < len(data) and tries > 0:
            smaller = data[:start] + data[start + size :]
            tries -= 1
            if breaks(smaller):
                data = smaller
            else:
                start += size
        size //= 2
    return data
