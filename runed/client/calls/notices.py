"""Warnings of the client about calls that work, but not as the caller may expect."""

from __future__ import annotations

import sys
import warnings

from runed.errors import RunedWarning

_told: set[str] = set()


def warn_once(message: str) -> None:
    """Show a warning as `warn` does, but only once in the life of this process."""
    if message not in _told:
        _told.add(message)
        warn(message)


def warn(message: str) -> None:
    """Show a `RunedWarning` at the line of the program that called the client."""
    level, frame = 1, sys._getframe()  # noqa: SLF001 # as `warnings.warn` itself does; Python 3.11 cannot skip a package
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "runed":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RunedWarning, stacklevel=level)
