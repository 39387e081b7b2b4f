"""Makes inputs: each is an input of the corpus with some changes. The same random numbers make the same input."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

MOST_BYTES = 64 * 1024
"""Bytes of the largest input."""

WORDS = (
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\r\n",
        b"\n\n",
        b"\r",
        b"\x1b[31m",
        b"%s",
        b"../",
        b"/",
    ),
    *(b"0", b"-1", b"-0", b"1e999", b"1e-999", b"NaN", b"Infinity", b"0.1", b"18446744073709551616", b"9" * 5000),
    *(b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'{"a":', b"[" * 2000, b'{"a":' * 2000),
    *("\u200b".encode(), "\U0001f600".encode(), "\u202e".encode(), b"a" * 10_000),
)
"""Pieces that programs have stumbled over."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[\[\]{}:,]|[A-Za-z_-]{2,}')
"""A token of JSON, and a word of HTTP and CSV."""

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Mutator:
    """Changes inputs of a corpus.

    Attributes:
        corpus: The inputs to begin with.
        words: Pieces that mean something to the reader, beside `WORDS`.
    """

    corpus: Sequence[bytes]
    words: Sequence[bytes] = ()

    def make(self, random: Random) -> bytes:
        """Return an input."""
        data = random.choice(self.corpus)
        for _ in range(min(8, 1 + int(random.expovariate(0.6)))):
            data = random.choice(_CHANGES)(self, random, data)
        return data[:MOST_BYTES]

    def word(self, random: Random) -> bytes:
        """Return a piece."""
        return random.choice(self.words if self.words and random.random() < 0.5 else WORDS)


def _place(random: Random, data: bytes) -> tuple[int, int]:
    """Choose a slice, mostly a short one."""
    start = random.randint(0, len(data))
    return start, min(len(data), start + int(random.expovariate(1 / random.choice([2, 16, 256]))))


def _flip(_: Mutator, random: Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _count in range(random.choice([1, 1, 2, 8])):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _delete(_: Mutator, random: Random, data: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + data[end:]


def _cut(_: Mutator, random: Random, data: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _insert(mutator: Mutator, random: Random, data: bytes) -> bytes:
    start, _ = _place(random, data)
    return data[:start] + mutator.word(random) + data[start:]


def _noise(_: Mutator, random: Random, data: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _repeat(_: Mutator, random: Random, data: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + data[start:end] * random.choice([2, 3, 10, 1000]) + data[end:]


def _splice(mutator: Mutator, random: Random, data: bytes) -> bytes:
    other = random.choice(mutator.corpus)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _token(mutator: Mutator, random: Random, data: bytes) -> bytes:
    """Replace a token, remove it, or exchange it for another one of the input."""
    tokens = list(_TOKEN.finditer(data[:4096]))
    if not tokens:
        return _insert(mutator, random, data)
    chosen, other = random.choice(tokens), random.choice(tokens)
    return data[: chosen.start()] + random.choice([mutator.word(random), other[0], b""]) + data[chosen.end() :]


def _number(_: Mutator, random: Random, data: bytes) -> bytes:
    """Overwrite bytes with a number at the edge of its type."""
    layout = random.choice(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"])
    packed = struct.pack(layout, random.choice(_NUMBERS) % 256 ** struct.calcsize(layout))
    start = random.randint(0, len(data))
    return data[:start] + packed + data[start + len(packed) :]


_CHANGES: Sequence[Callable[[Mutator, Random, bytes], bytes]] = (
    *(_flip, _delete, _cut, _insert, _noise, _repeat, _splice, _number),
    *(_token, _token, _token),  # most inputs are text, which a change of bytes seldom leaves readable
)
