"""Prepares texts: each is checked, counted and, if the caller allows it, cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from runed.backends.base import Counting, CountingEmbedder, TextInput, Tokens
from runed.domain.requests import Truncate
from runed.errors import BatchTooLargeError, EmptyBatchError, EmptyTextError, InvalidTextError, RunedError, TextTooLongError
from runed.scheduling.counting import tokenize_each
from runed.scheduling.cutting import cut_text
from runed.turns import breathe, breathe_before

MAX_BATCH_TEXTS = 2048
"""The most texts of one call."""

MAX_TEXT_CHARACTERS = 4 * 1024 * 1024
"""The most characters of a text. They fill a thick book, of which no model reads a tenth. But every token is counted, also of a
text that is cut."""

_TOKENS_PER_BYTE = 2
"""Most tokens for each UTF-8 byte of a text, without special tokens. A byte-level tokenizer (Qwen3) makes at most one token
from a byte. WordPiece (BERT) makes at most one token from a code point of the decomposed text, and canonical decomposition
makes at most three code points from two bytes."""

_SPECIAL_TOKENS = 2
"""Most special tokens that a tokenizer adds to a text (BERT: CLS and SEP)."""

_COUNT_TEXTS = 64
"""Most texts that are counted by one request: enough that the cost of a request does not matter, few enough for the backend
to answer others in between."""

_COUNT_CHARACTERS = 1024 * 1024
"""Most characters that are counted by one request, unless one text has more. Tokens take many times the memory of their
texts."""

Name: TypeAlias = tuple[str, dict[str, str]]
"""The name of a text in errors: for people, such as "text 3 of the batch", and as facts for programs, such as its index."""

STREAMED: Name = ("the text", {})
"""Name of a text of a stream. Its error travels beside its id."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text in the form that goes to the backend.

    Attributes:
        input: The text with its prompt, or the tokens that remain after a cut.
        tokens: The number of its tokens, including special tokens, or an upper bound of it.
        exact: Whether `tokens` is exact.
        total_tokens: The number of tokens before anything was cut off, or 0 if nothing was.
        size: The UTF-8 bytes of the text with its prompt.
    """

    input: TextInput
    tokens: int
    exact: bool
    total_tokens: int
    size: int


def check_count(texts: Sequence[str]) -> None:
    """Refuse an empty batch, or one of too many texts.

    Raises:
        EmptyBatchError: There is no text.
        BatchTooLargeError: There are more than `MAX_BATCH_TEXTS`.
    """
    if not texts:
        raise EmptyBatchError("the batch holds no text; send at least one")
    if len(texts) > MAX_BATCH_TEXTS:
        raise BatchTooLargeError(
            f"the batch holds {len(texts)} texts, the limit is {MAX_BATCH_TEXTS}; send several batches",
            metadata={"texts": str(len(texts)), "limit": str(MAX_BATCH_TEXTS)},
        )


def check_text(text: str, name: str, where: dict[str, str]) -> None:
    """Refuse a text whose vector would mean nothing.

    Args:
        text: The text.
        name: Its name in errors, for people.
        where: Its place, as facts for programs.

    Raises:
        EmptyTextError: It is empty or only white space.
        InvalidTextError: It has a NUL, or is not valid Unicode.
        TextTooLongError: It has more than `MAX_TEXT_CHARACTERS`.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise TextTooLongError(
            f"{name} has {len(text)} characters, the most that are counted are {MAX_TEXT_CHARACTERS}; split or shorten it",
            metadata=where | {"characters": str(len(text)), "character_limit": str(MAX_TEXT_CHARACTERS)},
        )
    if not text or text.isspace():
        raise EmptyTextError(
            f"{name} is empty or only white space, so that its vector would mean nothing; leave it out", metadata=where
        )
    if (position := text.find("\0")) >= 0:
        raise InvalidTextError(
            f"{name} has a NUL character at position {position}; remove it, or check that this is text",
            metadata=where | {"position": str(position)},
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # without its message, which would quote the text
        raise InvalidTextError(
            f"{name} is not valid Unicode (it has half of a surrogate pair at position {error.start}); replace or remove that",
            metadata=where | {"position": str(error.start)},
        ) from None


def portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in portions that are counted at once. A longer text is counted alone."""
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and (index - start == _COUNT_TEXTS or size + len(text) > _COUNT_CHARACTERS):
            yield texts[start:index]
            start, size = index, 0
        size += len(text)
    if texts:
        yield texts[start:]


def most_tokens(text: str) -> int:
    """Return an upper bound of the tokens of a text, including special tokens."""
    return len(text.encode()) * _TOKENS_PER_BYTE + _SPECIAL_TOKENS


class Preparer:
    """Prepares texts for one backend.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: CountingEmbedder) -> None:
        self._backend = backend
        self._special: tuple[int, int] | None = None

    def may_be_too_long(self, text: str) -> bool:
        """Return whether a text, with its prompt, must be counted to know that it is short enough."""
        return most_tokens(text) > self._backend.model.max_tokens

    async def prepare(
        self,
        texts: Sequence[str],
        *,
        prompt: str,
        truncate: Truncate,
        name: Callable[[int], Name],
        exact: bool = False,
    ) -> list[Prepared | RunedError]:
        """Prepare texts. Count the tokens of those that may be too long, if the backend can.

        Args:
            texts: The texts, checked by `check_text`.
            prompt: The text in front of each text.
            truncate: The treatment of a text that is too long.
            name: Returns the name of the text with an index, for an error.
            exact: Whether to count all texts.

        Returns:
            The prepared form of each text, or its error.

        Raises:
            BackendUnavailableError: The engine cannot be had.
        """
        whole: list[str] = []
        long: list[int] = []
        counts = self._backend.limits.counting is not Counting.SUM
        for index, text in enumerate(texts):
            await breathe_before(index)
            whole.append(prompt + text)
            if exact or (counts and self.may_be_too_long(whole[-1])):
                long.append(index)
        fitted: dict[int, Prepared | RunedError] = {}
        indices = iter(long)
        for part in portions([whole[index] for index in long]):
            for text, tokens in zip(part, await tokenize_each(part, self._backend), strict=True):
                index = next(indices)
                if isinstance(tokens, RunedError):
                    fitted[index] = located(tokens, name(index))
                else:
                    fitted[index] = await self._fit(text, tokens, prompt, truncate, partial(name, index))
                await breathe()
        for index, text in enumerate(whole):
            if index not in fitted:  # then it is short, or the backend itself refuses it
                fitted[index] = Prepared(text, most_tokens(text), exact=False, total_tokens=0, size=len(text.encode()))
        return [fitted[index] for index in range(len(whole))]

    async def _fit(
        self, text: str, tokens: Tokens, prompt: str, truncate: Truncate, name: Callable[[], Name]
    ) -> Prepared | TextTooLongError:
        limit = self._backend.model.max_tokens
        if len(tokens) <= limit:
            return Prepared(text, len(tokens), exact=True, total_tokens=0, size=len(text.encode()))
        words, where = name()
        facts = {"tokens": str(len(tokens)), "limit": str(limit)} | where
        if truncate is Truncate.NONE:
            return TextTooLongError(
                f"{words} has {len(tokens)} tokens, the limit is {limit}; split or shorten it, or let its end be "
                'cut off: `--truncate end` on the command line, truncate="end" in Python',
                metadata=facts,
            )
        cut: tuple[TextInput, int] | None
        if self._backend.limits.counting is Counting.ASKED:
            cut = await cut_text(text, len(tokens), prompt, truncate, self._backend)
        else:
            ids = await self._cut(tokens, prompt, truncate)
            cut = None if ids is None else (ids, limit)
        if cut is None:
            return TextTooLongError(
                f"the instruction leaves no room for {words} within the limit of {limit} tokens; shorten it", metadata=facts
            )
        return Prepared(cut[0], cut[1], exact=True, total_tokens=len(tokens), size=len(text.encode()))

    async def _cut(self, tokens: Tokens, prompt: str, truncate: Truncate) -> Tokens | None:
        """Drop the tokens over the limit, but no tokens of the prompt and no special tokens.

        Return None if no text would be left.
        """
        if self._special is None:
            self._special = await self.count_special_tokens()
        first, last = self._special
        prompt_tokens = len((await self._backend.tokenize([prompt]))[0]) - first - last if prompt else 0
        head = tokens[: first + prompt_tokens]
        tail = tokens[len(tokens) - last :]
        room = self._backend.model.max_tokens - len(head) - len(tail)
        if room < 1:
            return None
        text = tokens[len(head) : len(tokens) - last]
        return head + (text[:room] if truncate is Truncate.END else text[-room:]) + tail

    async def count_special_tokens(self) -> tuple[int, int]:
        """Count the special tokens that the backend puts before and after each text."""
        none, some = await self._backend.tokenize(["", "a"])
        # The last match: the sample is a plain letter, which cannot be a special token.
        first = next(count for count in range(len(none) + 1) if some[count : count + 1] != none[count : count + 1])
        return first, len(none) - first


def located(error: RunedError, name: Name) -> RunedError:
    """Return an error of a text with the name of the text, which the backend does not know."""
    words, where = name
    return error.retold(f"{words}: {error.message}", **where) if where.keys() - error.metadata.keys() else error


def named(index: int, count: int) -> Name:
    """Return the name of one text of a call that has `count` texts."""
    where = {"index": str(index)}
    return ("the text" if count == 1 else f"text {index} of the batch (counted from 0)"), where
