"""Passes: the tokens that the engine computes at once for a model with last-token pooling (`--ubatch-size`)."""

from __future__ import annotations

import psutil

TILE = 64
"""Fewest tokens of a pass that the flash attention of llama.cpp computes in tiles on a CPU, and the size of a tile.

A smaller pass adds up in half precision, which a long text feels: one of 2,000 tokens had a cosine of 0.99988 to the result of
one pass (random weights in f32, 4 layers). Tiles are exact, but their bounds depend on the place of a text in the context."""

SHORT_PASS = 60
"""Tokens of a pass without tiles. The kernels take 4 tokens at once, so it is a multiple of 4."""

TILED_PASSES = (128, 192, 256, 512)
"""Tokens of a pass in tiles. Each size is a multiple of `TILE` and has room for a short last piece of a text and a tile."""

RANKING_PASS = 512
"""Tokens of a pass of a reranker that reads from left to right. Engines before llama.cpp's pull request 28876 take no pair that
is longer than a pass."""

_BYTES_PER_VALUE = 8
"""Bytes for each token of a pass and each token of the vocabulary: two buffers of float32. Measured with a vocabulary of
151,936: 1.16 MiB a token of a pass."""

_MEMORY_SHARE = 0.25
"""Largest part of the free memory for these buffers. The weights and the context need the rest, and so do other programs."""


def pass_cost(vocabulary: int) -> int:
    """Return the bytes of memory that each token of a pass costs."""
    return _BYTES_PER_VALUE * vocabulary


def affordable_pass(tokens: int, *, vocabulary: int, free: int) -> int:
    """Return the largest pass that free memory allows.

    Args:
        tokens: The wanted tokens of a pass.
        vocabulary: The number of tokens of the vocabulary.
        free: The free memory in bytes.

    Returns:
        `tokens`, or the largest smaller one of `TILED_PASSES`, or `SHORT_PASS`.
    """
    most = _MEMORY_SHARE * free / max(1, pass_cost(vocabulary))
    return tokens if tokens <= most else max((size for size in TILED_PASSES if size <= min(tokens, most)), default=SHORT_PASS)


def fitting_pass(tokens: int, context: int) -> int:
    """Return a pass for a context, such that each text finds room for a tile beside its last piece.

    Args:
        tokens: The wanted tokens of a pass.
        context: The tokens of the context, a multiple of 256.
    """
    # A text with a last piece of up to 63 tokens may fill a context of 64 tokens more than a multiple of the pass.
    return min(tokens + TILE if tokens > SHORT_PASS and context % tokens == TILE else tokens, context)


def missing_tile(tokens: int, pass_tokens: int) -> bool:
    """Return whether the last piece of a text is too short for tiles."""
    return tokens > pass_tokens and 0 < tokens % pass_tokens < TILE


def free_memory() -> int:
    """Return the bytes of memory that programs can still get."""
    return int(psutil.virtual_memory().available)
