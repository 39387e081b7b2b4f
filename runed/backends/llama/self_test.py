"""Checks what an engine computes before anybody relies on it."""

from __future__ import annotations

import itertools

import numpy as np

from runed.backends.base import BatchLimits
from runed.backends.llama.http import LlamaHTTP
from runed.errors import BackendFaultError

_TEXTS = ("runed", "two words", "A text of some length, with digits 0123 and signs.", "The last of the four.")
"""Short enough that each fits into a micro-batch of 63 tokens, were each of its bytes a token."""

_LONG_TOKENS = 72
"""More than the 60 tokens that are computed at once where texts share a context."""

MIN_COSINE = 0.9999
"""Between the vectors that a text has alone and in company."""

_BROKEN_COSINE = 0.99
"""Below this, a vector is not another rounding of the same one but another text's, or garbage."""


class CompanyError(BackendFaultError):
    """The engine rounds a text's vector differently in company than alone; with one slot there is no company.

    Args:
        cosine: Between the two, at worst.
    """

    def __init__(self, cosine: float) -> None:
        super().__init__(f"llama-server embeds a text differently alone and in company (cosine {cosine:.5f})")


async def check_engine(http: LlamaHTTP, *, eos_id: int | None, limits: BatchLimits) -> None:
    """Check an engine that has just loaded its model.

    Args:
        http: The engine.
        eos_id: The token that each text must end with, or None.
        limits: What a micro-batch may hold.

    Raises:
        CompanyError: Vectors depend a little on what else is computed, and there is more than one slot.
        SlotsError: They would, since it cannot erase its slots.
        BackendFaultError: It computes something else that is wrong.
        ConnectionLostError: It went away.
    """
    tokens = await http.tokenize(_TEXTS)
    if eos_id is not None and any(text[-1:] != [eos_id] for text in tokens):
        raise BackendFaultError(
            f"llama-server does not end a text with the model's end-of-text token {eos_id} "
            f"(it ends with {tokens[0][-1:]}), so its vectors would be wrong; "
            "use another version of llama-server or of the model"
        )
    alone = [await http.embed([text]) for text in _TEXTS]
    if [batch.tokens for batch in alone] != [len(text) for text in tokens]:
        raise BackendFaultError("llama-server counts other tokens than it embeds; use another version of llama-server")
    fitting = sum(np.cumsum([len(text) for text in tokens]) <= limits.tokens)
    together = await http.embed(_TEXTS[: max(min(fitting, limits.texts), 2)])
    cosine = min(_cosine(batch.vectors[0], vector) for batch, vector in zip(alone, together.vectors, strict=False))
    if not cosine >= _BROKEN_COSINE:
        raise BackendFaultError(
            f"llama-server embeds a text differently alone and in a batch (cosine {cosine:.4f}), "
            "so its vectors cannot be trusted; use another version of llama-server"
        )
    if limits.texts > 1:
        long = (list(itertools.chain.from_iterable(tokens)) * _LONG_TOKENS)[:_LONG_TOKENS]
        first, _, second = await http.embed([long]), await http.embed(_TEXTS[:2]), await http.embed([long])
        cosine = min(cosine, _cosine(first.vectors[0], second.vectors[0]))
        if cosine < MIN_COSINE:
            raise CompanyError(cosine)


def _cosine(one: bytes, other: bytes) -> float:
    """Give the cosine of two vectors of norm 1."""
    return float(np.frombuffer(one, "<f4") @ np.frombuffer(other, "<f4"))
