"""Compares two engines for one model: their tokens, their vectors, and their speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runed.backends.base import LocalBackend, Tokens
from runed.backends.likeness import cosine
from runed.backends.measuring import Speed, measure_speed
from runed.backends.samples import LONG_TEXT_WORDS, SOME_TEXTS, sample_texts
from runed.domain.model import ModelInfo

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
"""Texts in many scripts, short enough for any model, that each tokenizer splits in the same way."""

DISPUTED = {
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে।",
    "Gujarati": "બધા માણસો જન્મથી સ્વતંત્ર છે.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकार प्राप्त हैं।",
    "Kannada": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 존엄하다.",
    "Malayalam": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടെ ജനിച്ചവരാണ്.",
    "Sinhala": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    "Tamil": "மனிதப் பிறவியினர் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "Telugu": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులు స్వతంత్రులు.",
    "words of over 100 letters": "ab" * 51,
}
"""Texts, by what they stand for, that llama.cpp splits in another way than the reference implementation of WordPiece, which is
that of ONNX Runtime. llama.cpp takes the first part of a Korean syllable only, removes all marks, and knows no longest word."""

_WORD_PIECE = "[SEP]"
"""A special token that vocabularies for WordPiece have, and no others."""

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
        tokens: The tokens of each of `SCRIPTS`.
        disputed: The tokens of each of `DISPUTED`.
        vectors: The vector of each of them alone; b"" for a text that is too long for the model.
        speed: Its speed.
    """

    tokens: Sequence[Tokens]
    disputed: Sequence[Tokens]
    vectors: tuple[bytes, ...]
    speed: Speed


@dataclass(frozen=True, slots=True)
class Difference:
    """How the results of two engines differ.

    Attributes:
        cosine: The smallest cosine between their vectors; 0 if they cannot be compared.
        objection: Why the second engine must not serve instead of the first one, as a clause; "" if it may.
        disputed: The keys of `DISPUTED` whose texts they split into other tokens, although the second one may serve.
    """

    cosine: float
    objection: str
    disputed: tuple[str, ...] = ()


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
        tokens = await backend.tokenize([*SCRIPTS, *DISPUTED.values()])
        fits = [len(ids) <= backend.model.max_tokens for ids in tokens[: len(SCRIPTS)]]
        vectors = [(await backend.embed([text])).vectors[0] if fit else b"" for text, fit in zip(SCRIPTS, fits, strict=True)]
        speed = await measure_speed(backend, sample_texts(SOME_TEXTS, LONG_TEXT_WORDS), seconds, engine=engine)
    finally:
        await backend.stop()
    return Trial(tokens[: len(SCRIPTS)], tokens[len(SCRIPTS) :], tuple(vectors), speed)


def differ(one: Trial, other: Trial, model: ModelInfo) -> Difference:
    """Compare the results of two engines for the same model.

    Args:
        one: The result of the engine that is trusted.
        other: That of the engine which may serve instead.
        model: The model.
    """
    wrong = _others(SCRIPTS, one.tokens, other.tokens)
    disputed = _others(tuple(DISPUTED), one.disputed, other.disputed)
    if not any(text == _WORD_PIECE for _, text in model.special_tokens):  # tokenizers of other kinds have no such excuse
        wrong, disputed = wrong + disputed, ()
    if wrong:
        return Difference(0.0, f"it splits {len(wrong)} of {len(SCRIPTS) + len(DISPUTED)} test texts into other tokens")
    least = least_cosine(one.vectors, other.vectors)
    bound = _LEAST_COSINE if model.file_type in _EXACT_TYPES else _LEAST_COSINE_QUANTIZED
    if not least >= bound:
        return Difference(least, f"its vectors differ from those of the other engine (cosine {least:.5f}, {bound} is needed)")
    return Difference(least, "", disputed)


def least_cosine(ones: Sequence[bytes], others: Sequence[bytes]) -> float:
    """Return the smallest cosine of two vectors of the same text, where both exist; 0 if some cannot be compared."""
    cosines = [cosine(one, other) for one, other in zip(ones, others, strict=True) if one and other]
    return min((0.0 if math.isnan(each) else each for each in cosines), default=0.0)


def _others(names: Sequence[str], ones: Sequence[Tokens], others: Sequence[Tokens]) -> tuple[str, ...]:
    """Return the names of the texts whose tokens differ."""
    return tuple(name for name, one, other in zip(names, ones, others, strict=True) if one != other)
