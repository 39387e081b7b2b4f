"""Cuts a text by its characters, for an engine on another machine, which takes no tokens of ours."""

from __future__ import annotations

from runed.backends.base import CountingEmbedder
from runed.domain.requests import Truncate

_SLACK = 4
"""Tokens below the limit with which a cut text is good enough. Each further look is a request over a network."""

_MOST_LOOKS = 12
"""The most requests for one text."""


async def cut_text(
    text: str, tokens: int, prompt: str, truncate: Truncate, backend: CountingEmbedder
) -> tuple[str, int] | None:
    """Drop characters at one end of a text until its tokens fit, but none of its prompt.

    Args:
        text: The text with its prompt.
        tokens: The number of its tokens, which is above the limit.
        prompt: The prompt in front of it.
        truncate: The end at which it is cut.
        backend: Counts tokens, and has the limit.

    Returns:
        The longest text that was found to fit, and the number of its tokens; None if none fits.

    Raises:
        BackendError: The backend cannot count.
    """
    limit, body = backend.model.max_tokens, text[len(prompt) :]
    best: tuple[str, int] | None = None
    # The numbers of characters that fit and that do not, with their tokens. Between the two, tokens grow about evenly.
    [none] = await backend.tokenize([prompt])
    low, low_tokens = 0, len(none)
    high, high_tokens = len(body), tokens
    for _ in range(_MOST_LOOKS):
        if high - low < 2 or low_tokens >= limit:  # noqa: PLR2004 # nothing lies between neighbours
            break
        share = (limit - _SLACK / 2 - low_tokens) / max(1, high_tokens - low_tokens)
        middle = min(max(low + round((high - low) * share), low + 1), high - 1)
        tried = prompt + (body[:middle] if truncate is Truncate.END else body[-middle:])
        [ids] = await backend.tokenize([tried])
        if len(ids) > limit:
            high, high_tokens = middle, len(ids)
            continue
        best, low, low_tokens = (tried, len(ids)), middle, len(ids)
        if limit - len(ids) <= _SLACK:
            break
    return best
