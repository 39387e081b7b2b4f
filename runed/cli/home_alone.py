"""The settings of commands that need only the home: they work beside a mistake in any other setting."""

from __future__ import annotations

import os
import warnings

from runed.errors import RunedWarning, SettingsError
from runed.settings import Settings, load_settings

_NEEDED = ("RUNED_HOME", "RUNED_TRUST_PARENTS")


def load_home() -> Settings:
    """Return the settings. If one of them cannot be used, warn, and return the home alone, with defaults for all else.

    A daemon that runs has the settings with which it began. A mistake that was made since must not keep it from being stopped.

    Raises:
        SettingsError: The home cannot be used.
        ForeignPathError: Another user has a hand in the home.
    """
    settings, mistake = home_and_mistake()
    if mistake:
        warnings.warn(f"{mistake} (other commands need that; this one goes on without)", RunedWarning, stacklevel=2)
    return settings


def home_and_mistake() -> tuple[Settings, str]:
    """Return the settings as `load_home` does, and what is wrong with them instead of a warning; "" for nothing.

    Raises:
        SettingsError: The home cannot be used.
        ForeignPathError: Another user has a hand in the home.
    """
    try:
        return load_settings(), ""
    except SettingsError as error:
        found = {name: value for name in _NEEDED if (value := os.environ.get(name))}
        return load_settings(environ=found, configured=False), error.message
