"""Checks the vectors of an engine before it serves."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec

from runed.backends.base import BatchLimits, pack
from runed.errors import BackendFaultError

if TYPE_CHECKING:  # it imports numpy, for which no start of an engine shall wait
    from runed.backends.engine.interface import EngineInterface

MIN_COSINE = 0.9999
"""Smallest accepted likeness of the vectors of a text alone and beside other texts, as `EngineInterface.likeness` tells it."""

_BROKEN_COSINE = 0.99
"""Likeness below which the difference of two vectors is not rounding: the vector is another text's, or garbage."""


class CompanyError(BackendFaultError):
    """The engine rounds a text's vector differently beside other texts. `cosine` compares it with that of the text alone."""

    def __init__(self, cosine: float, *, engine: str) -> None:
        super().__init__(f"{engine} embeds a text differently alone and in a batch (cosine {cosine:.5f})")


class SelfTest(msgspec.Struct, frozen=True):
    """The result of a self-test that was passed.

    Attributes:
        reference: The vector of the first text, for `check_again`: little-endian float32 values.
        company_cosine: The smallest cosine between the vectors of a text alone and beside others.
    """

    reference: bytes
    company_cosine: float


async def check_engine(http: EngineInterface, *, eos_id: int | None, limits: BatchLimits, long_tokens: int) -> SelfTest:
    """Check an engine that has just loaded its model.

    Args:
        http: The engine.
        eos_id: The token that each text must end with, or None.
        limits: The most texts and tokens of a micro-batch.
        long_tokens: The tokens of a long text, which is computed alone; 0 for none.

    Raises:
        CompanyError: Vectors depend a little on the other texts of a batch, and there is more than one slot.
        BackendFaultError: Vectors are wrong in another way.
        ConnectionLostError: The connection ended.
    """
    name = http.name
    tokens = await http.tokenize(http.samples)
    if eos_id is not None and any(text[-1:] != pack([eos_id]) for text in tokens):
        raise BackendFaultError(
            f"{name} does not end a text with the model's end-of-text token {eos_id} "
            f"(it ends with {tokens[0][-1:].tolist()}), so its vectors would be wrong; "
            f"use another version of {name} or of the model"
        )
    most = http.max_tokens
    texts = [text if len(ids) <= most else ids[:most] for text, ids in zip(http.samples, tokens, strict=True)]
    alone = [await http.embed([text]) for text in texts]
    if [batch.tokens for batch in alone] != [min(len(ids), most) for ids in tokens]:
        raise BackendFaultError(f"{name} counts other tokens than it embeds; use another version of {name}")
    fitting = sum(tokens <= limits.tokens for tokens in itertools.accumulate(batch.tokens for batch in alone))
    together = await http.embed(texts[: max(min(fitting, limits.texts), 2)])
    worst = min(http.likeness(batch.vectors[0], vector) for batch, vector in zip(alone, together.vectors, strict=False))
    if not worst >= _BROKEN_COSINE:
        raise BackendFaultError(
            f"{name} embeds a text differently alone and in a batch (cosine {worst:.4f}), "
            f"so its vectors cannot be trusted; use another version of {name}"
        )
    if limits.texts > 1 and long_tokens:
        long = pack(itertools.islice(itertools.cycle(itertools.chain.from_iterable(tokens)), long_tokens))
        first, _, second = await http.embed([long]), await http.embed(texts[:2]), await http.embed([long])
        worst = min(worst, http.likeness(first.vectors[0], second.vectors[0]))
    if limits.texts > 1 and worst < MIN_COSINE:
        raise CompanyError(worst, engine=name)
    return SelfTest(alone[0].vectors[0], worst)


async def check_again(http: EngineInterface, reference: bytes, *, least: float = _BROKEN_COSINE) -> None:
    """Check by one short text that an engine still computes what `check_engine` saw.

    Args:
        http: The engine, or a replacement of it.
        reference: The vector that `check_engine` returned.
        least: The smallest likeness that is accepted.

    Raises:
        BackendFaultError: The vector is wrong.
        ConnectionLostError: The connection ended.
    """
    answer = await http.embed(http.samples[:1])
    if not (similarity := http.likeness(answer.vectors[0], reference)) >= least:
        raise BackendFaultError(f"{http.name} gives another vector for the same text than before (cosine {similarity:.4f})")
