"""Compares two engines for one model: their tokens, their vectors, and their speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runed.backends.base import LocalBackend
from runed.backends.likeness import cosine
from runed.backends.measuring import Speed, measure_speed
from runed.backends.samples import LONG_TEXT_WORDS, SOME_TEXTS, sample_texts

FASTER = 1.1
"""Gain from which on another engine or device than the usual one is preferred. Its vectors differ by rounding, so that it has
another fingerprint."""

SCRIPTS = (
    "The quick brown fox jumps over the lazy dog, twice: 3.14 times!",
    "HTTP/1.1 404 Not Found\n\tX-Token: ab_cd-ef; q=0.5",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "Voilà l\u2019été, où l\u2019œuvre naïve du garçon a coûté 20\u202f€.",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. \u0130stanbul \u0131\u011fd\u0131r",
    "Đặng Thị Huệ sống ở Hà Nội từ năm 1990.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "我能吞下玻璃而不伤身体。你好\uff0c世界\uff01",
    "いろはにほへと ちりぬるを。カタカナとＦＵＬＬ幅１２３",
    "გთხოვთ ახლავე გაიაროთ რეგისტრაცია. Բարեւ աշխարհ",
    "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "🦊 jumps 👩\u200d👩\u200d👧\u200d👦 over 🏳️\u200d🌈, ½ ≠ ∑ x² → ∞",
    "[CLS] a [SEP] b </s> <s> <unk> [MASK]",
    "  two  spaces, a zero\u200bwidth one, and a\u00a0hard one  ",
    "supercalifragilisticexpialidocious-Donaudampfschifffahrtsgesellschaft",
    "!?...---***((()))",
    "7",
)
"""Texts in many scripts, short enough for any model. Korean and the scripts of India are left out, and so are words of over 100
characters: there, llama.cpp splits words in another way than the reference implementation of WordPiece, which the tokenizer of
ONNX Runtime is."""

_EXACT_TYPES = frozenset({"F32", "F16"})
"""Types of files whose weights every engine computes with as they are."""

_LEAST_COSINE = 0.9999
"""Smallest cosine between the vectors of two engines that compute with the same weights."""

_LEAST_COSINE_QUANTIZED = 0.99
"""The same where an engine also rounds what it multiplies the weights with. Below it, one of the two is wrong."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one engine did.

    Attributes:
        tokens: The number of tokens of each of `SCRIPTS`.
        vectors: The vector of each of them alone; b"" for a text that is too long for the model.
        speed: Its speed.
    """

    tokens: tuple[int, ...]
    vectors: tuple[bytes, ...]
    speed: Speed


@dataclass(frozen=True, slots=True)
class Difference:
    """How the results of two engines differ.

    Attributes:
        cosine: The smallest cosine between their vectors; 0 if they cannot be compared.
        objection: Why the second engine must not serve instead of the first one, as a clause; "" if it may.
    """

    cosine: float
    objection: str


async def try_engine(backend: LocalBackend, seconds: float, *, engine: str) -> Trial:
    """Start an engine, let it work, and stop it.

    Args:
        backend: The backend.
        seconds: The time to measure its speed. Its start comes on top.
        engine: The name of the engine, for an error.

    Raises:
        BackendError: The engine does not run, or its vectors are wrong.
    """
    try:
        await backend.start()
        tokens = tuple(len(ids) for ids in await backend.tokenize(SCRIPTS))
        fits = [count <= backend.model.max_tokens for count in tokens]
        vectors = [(await backend.embed([text])).vectors[0] if fit else b"" for text, fit in zip(SCRIPTS, fits, strict=True)]
        speed = await measure_speed(backend, sample_texts(SOME_TEXTS, LONG_TEXT_WORDS), seconds, engine=engine)
    finally:
        await backend.stop()
    return Trial(tokens, tuple(vectors), speed)


def differ(one: Trial, other: Trial, *, file_type: str) -> Difference:
    """Compare the results of two engines for the same model.

    Args:
        one: The result of the engine that is trusted.
        other: That of the engine which may serve instead.
        file_type: As in `ModelInfo`.
    """
    if one.tokens != other.tokens:
        wrong = [text for text, first, second in zip(SCRIPTS, one.tokens, other.tokens, strict=True) if first != second]
        return Difference(0.0, f"it splits {len(wrong)} of {len(SCRIPTS)} test texts into other tokens")
    least = least_cosine(one.vectors, other.vectors)
    bound = _LEAST_COSINE if file_type in _EXACT_TYPES else _LEAST_COSINE_QUANTIZED
    if not least >= bound:
        return Difference(least, f"its vectors differ from those of the other engine (cosine {least:.5f}, {bound} is needed)")
    return Difference(least, "")


def least_cosine(ones: Sequence[bytes], others: Sequence[bytes]) -> float:
    """Return the smallest cosine of two vectors of the same text, where both exist; 0 if some cannot be compared."""
    cosines = [cosine(one, other) for one, other in zip(ones, others, strict=True) if one and other]
    return min((0.0 if math.isnan(each) else each for each in cosines), default=0.0)
