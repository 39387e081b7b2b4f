"""Texts to measure with."""

from __future__ import annotations

import random

LONG_TEXT_WORDS = 40
"""Words of a text that has more tokens than any length to measure with."""

SOME_TEXTS = 256
"""Texts to measure an engine with."""

_WORDS = (  # noqa: SIM905 # words read best as words
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour"
).split()


def sample_texts(count: int, words: int) -> list[str]:
    """Make texts of `words` common English words. They are new to the cache."""
    return [" ".join(random.choices(_WORDS, k=words)) for _ in range(count)]  # noqa: S311 # no secret
