"""Finds the texts of which a model reads nothing: only special tokens, and characters that its tokenizer drops.

The engine decides, since its tokenizer drops characters by rules of its own. It is asked about few texts: nearly every text has
a letter or a digit outside of a special token, and every tokenizer makes a token of these.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from runed.backends.base import Counting, CountingEmbedder
from runed.errors import EmptyTextError
from runed.scheduling.preparing import portions

_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"
"""Letters without a glyph, the fillers of Hangul."""

_BLANK_SYMBOLS = "\u2800\ufffd"
"""The Braille pattern without a dot, and the character in place of one that was lost."""

_EXAMINED = 4096
"""Characters of a text that are searched for a letter or a digit. A longer search would keep the event loop from others."""

_CONTENT = re.compile(rf"[^\W_{_BLANK_LETTERS}]")


class BlankFinder:
    """Finds the texts of which one model reads nothing.

    Args:
        backend: The backend, which tokenizes.
    """

    def __init__(self, backend: CountingEmbedder) -> None:
        self._backend = backend
        self._special = backend.model.special_tokens
        self._unknown = backend.model.unknown_token
        self._nothing = {number for number, _ in self._special} - {self._unknown}
        self._complete = False
        self._written = {text for _, text in self._special}
        self._shapes = {(found.start(), len(text)) for text in self._written if (found := _CONTENT.search(text))}
        """For each special token that has a letter or a digit: the position of the first one, and the length."""
        self._shortest = min((before for before, _ in self._shapes), default=0)

    def is_doubtful(self, text: str) -> bool:
        """Return whether the engine must judge a text: the first letter or digit is of a special token, or far away."""
        found = _CONTENT.search(text, 0, _EXAMINED)
        if found is None:
            return True
        first = found.start()
        return first >= self._shortest and any(
            first >= before and text[first - before : first - before + length] in self._written
            for before, length in self._shapes
        )

    async def judge(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether the model reads nothing of it.

        Raises:
            BackendError: The backend cannot tokenize.
        """
        if self._backend.limits.counting is Counting.SUM:  # nobody can be asked
            return [all(map(_is_invisible, set(text))) for text in texts]
        if not self._complete:
            # A space: some tokenizers begin each text with a token for it.
            self._nothing.update(*await self._backend.tokenize(["", " "]))
            self._complete = True
        return [
            self._is_nothing(text, set(tokens))
            for part in portions(texts)
            for text, tokens in zip(part, await self._backend.tokenize(part), strict=True)
        ]

    def _is_nothing(self, text: str, tokens: set[int]) -> bool:
        if not (rest := tokens - self._nothing):
            return True
        for number, written in self._special:
            if number in tokens:
                text = text.replace(written, "")
        # The unknown token stands for a smiley as well as for a character that nobody sees.
        return not text.strip() or (rest == {self._unknown} and all(map(_is_invisible, set(text))))


def empty_text(name: str, where: dict[str, str]) -> EmptyTextError:
    """Return the error of a text of which the model reads nothing; see `preparing.check_text` for the arguments."""
    return EmptyTextError(
        f"{name} has only special tokens and characters of which the model reads nothing, so that its vector would mean "
        "nothing; leave it out",
        metadata=where,
    )


def _is_invisible(char: str) -> bool:
    """Return whether a character is a space, a control, private, unassigned, a mark without a letter, or without a glyph."""
    return unicodedata.category(char)[0] in "CZM" or char in _BLANK_LETTERS + _BLANK_SYMBOLS
