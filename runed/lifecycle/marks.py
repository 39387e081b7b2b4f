"""The marks of a daemon's settings. By them, a client notices that the running daemon has other settings than its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from runed.settings import SETTINGS, Settings

_OF_CLIENTS = {"runed_binary", "trust_parents"}
"""Settings that a daemon does not use once it runs."""

_OF_VECTORS = {"model", "model_variant", "default_model", "models", "aliases", "manifest", "ctx_size"}
"""Settings that change vectors, or what is embedded at all."""


def marks_of(settings: Settings) -> dict[str, str]:
    """Return the name of each setting of the daemon that is not its default, with a hash of 8 digits of its value."""
    default = Settings(settings.home)
    values = {
        name: (getattr(settings, setting.field), getattr(default, setting.field))
        for name, setting in SETTINGS.items()
        if setting.field and name not in _OF_CLIENTS
    }
    return {
        name: hashlib.sha256(repr(value).encode()).hexdigest()[:8] for name, (value, usual) in values.items() if value != usual
    }


def differences(settings: Settings, marks: Mapping[str, str]) -> tuple[str, ...]:
    """Return the settings that a running daemon has not, as the variables or keys that set them.

    A setting that changes vectors counts whoever has set it. Any other counts only if it is set here.

    Args:
        settings: The settings of a client.
        marks: What `marks_of` told when the daemon started.
    """
    own = marks_of(settings)
    return tuple(
        setting.variable or f"{name} in config.json"
        for name, setting in SETTINGS.items()
        if own.get(name) != marks.get(name) and (name in own or name in _OF_VECTORS)
    )
