"""Suggests the names that a misspelt one may stand for."""

from __future__ import annotations

from collections.abc import Iterable

_LIKENESS = 0.6
"""The least likeness of two names, from 0 to 1, as `difflib` counts it."""

_LONGEST = 200
"""The most characters of a name that is compared. The time grows with their square."""

_CONTAINED = 3
"""The fewest characters that are looked for inside of other names. Shorter ones are in nearly all of them."""


def near(name: str, names: Iterable[str], *, most: int = 3) -> list[str]:
    """Return the names that are most like a name, the nearest first; none if none is like it.

    Args:
        name: The name that does not exist.
        names: The names that exist. Upper and lower case count as the same.
        most: The most names to return.
    """
    import difflib  # noqa: PLC0415 # 4 ms that a call without a mistake does not spend

    known = {other.lower(): other for other in names}
    sought = name[:_LONGEST].lower()
    found = difflib.get_close_matches(sought, known, most, _LIKENESS)
    if len(sought) >= _CONTAINED:  # such as "qwen3", which is only a small part of "qwen3-embedding-0.6b"
        found += [other for other in known if sought in other and other not in found]
    return [known[other] for other in found[:most]]


def did_you_mean(name: str, names: Iterable[str], *, most: int = 1) -> str:
    """Return a clause for the end of a sentence that asks for the nearest names; "" if none is near. See `near`."""
    *others, last = near(name, names, most=most) or [""]
    if not last:
        return ""
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"
