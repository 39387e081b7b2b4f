"""Models that are added to `config.json` while the daemon runs, as `runed add` does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from runed.log import get_logger
from runed.settings import Settings, configuration, load_settings

_log = get_logger(__name__)


class AddedModels:
    """Notices models and aliases that the configuration has got. What else changes there waits for the next daemon.

    Args:
        settings: The settings that the daemon began with.

    Attributes:
        seen: The state of the file whose models are known. None at first: it may have changed since the settings were read.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = configuration(settings.home)
        self.seen: tuple[int, ...] | None = None

    def state(self) -> tuple[int, ...]:
        """Return what differs once the file was changed; () for no file."""
        with contextlib.suppress(OSError):
            found = self._file.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return ()

    def add_to(self, settings: Settings) -> Settings | None:
        """Return settings with the models and aliases that were added; None if there are none, or if others were changed.

        Raises:
            RunedError: The configuration cannot be used.
        """
        found = load_settings(home=settings.home)
        if not (_holds(found.models, settings.models) and _holds(found.aliases, settings.aliases)):
            return None  # a model of this name may be in use
        new = [name for name in (*found.models, *found.aliases) if name not in settings.models and name not in settings.aliases]
        if not new:
            return None
        _log.info("models were added to the configuration", names=new)
        return replace(settings, models=found.models, aliases=found.aliases)


def _holds(table: Mapping[str, object], part: Mapping[str, object]) -> bool:
    """Return whether a table has all that another one has."""
    return all(name in table and table[name] == value for name, value in part.items())
