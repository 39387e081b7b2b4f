"""Which texts can be the name of a model, or an alias.

Names become parts of paths and of URLs, so they hold no separator and begin with a letter or a digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from runed.errors import SettingsError, quoted

MAX_NAME = 128
"""The most characters of a name."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,127}(?<!\.)", re.IGNORECASE | re.ASCII)
"""Letters, digits, "_", "-" and single dots."""


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a model, or an alias."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, origin: str) -> str:
    """Return a name that the user chose.

    Args:
        text: The name.
        origin: The place where it stands, for the error.

    Raises:
        SettingsError: It cannot be a name.
    """
    if is_name(text):
        return text
    raise SettingsError(
        f"{origin}: {quoted(text)} cannot be the name of a model; accepted are up to {MAX_NAME} letters, digits, "
        '"-", "_" and single dots, beginning with a letter or a digit'
    )


def check_names(texts: Iterable[str], origin: str) -> None:
    """Check all names of one table of `config.json`.

    Args:
        texts: The names.
        origin: The table and its file, for the error.

    Raises:
        SettingsError: One cannot be a name, or two differ by upper and lower case alone, which count as the same.
    """
    known: dict[str, str] = {}
    for text in texts:
        other = known.setdefault(check_name(text, origin).lower(), text)
        if other != text:
            raise SettingsError(f"{origin}: {other} and {text} differ by upper and lower case alone; rename one of them")
