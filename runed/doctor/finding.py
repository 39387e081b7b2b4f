"""What a check gets, and what it finds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from runed.lifecycle.asking import Health, Info
from runed.paths import Paths
from runed.settings import Settings


class State(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """runed works, but not as well as it could, or something will fail later."""
    FAILED = "failed"
    """runed cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: The name of the check.
        state: How bad it is.
        detail: The fact, as a clause.
        remedy: What to do now; "" if nothing is to do.
    """

    check: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """One home on one machine.

    Attributes:
        settings: Its settings.
        paths: Its files.
        info: What the daemon tells of itself; None if none answers.
        health: The state of the daemon; None if none answers.
        root: The root directory of the machine.
        announce: Called with a sentence before work that takes seconds.
        clock: Returns the time, in seconds since 1970.
    """

    settings: Settings
    paths: Paths
    info: Info | None = None
    health: Health | None = None
    root: Path = Path("/")
    announce: Callable[[str], None] = field(default=lambda _: None)
    clock: Callable[[], float] = time.time

    @property
    def place(self) -> Path:
        """The home, or the lowest directory above it that exists."""
        place = self.paths.home
        while not place.exists() and place != place.parent:
            place = place.parent
        return place

    def read(self, path: str) -> str:
        """Return the text of a file of the machine; "" if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return ""

    @property
    def is_mine(self) -> bool:
        """Whether the root directory is that of this process, so that its system calls tell of it, too."""
        return self.root == Path("/") and os.name == "posix"


def ok(check: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, State.OK, detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    """Return a finding of something that works, but not well."""
    return Finding(check, State.WARNING, detail, remedy)


def failed(check: str, detail: str, remedy: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding(check, State.FAILED, detail, remedy)
