"""The marks of a daemon's settings. By them, a client notices that the running daemon has other settings than its own."""

from __future__ import annotations

from collections.abc import Mapping

from runed.settings import CONFIG, SETTINGS, Settings

_OF_CLIENTS = {"log", "otel_endpoint", "progress", "runed_binary", "trust_parents"}
"""Settings that a daemon does not use once it runs, and those of its clients: each may name a collector of its own."""


def marks_of(settings: Settings) -> dict[str, str]:
    """Return the name of each setting of the daemon that is not its default, with a hash of 8 digits of its value."""
    import hashlib  # noqa: PLC0415 # 3 ms that a command which starts nothing does not spend

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
    """Return the settings that a running daemon has not, as the variables or keys that set them here.

    Args:
        settings: The settings of a client. Only those that differ from their defaults count: a client that sets nothing takes
            what is there.
        marks: What `marks_of` told when the daemon started.
    """
    own = marks_of(settings)
    return tuple(
        f"{name} in config.json" if settings.written.get(name, ("", ""))[1] == CONFIG else setting.variable
        for name, setting in SETTINGS.items()
        if name in own and own[name] != marks.get(name)
    )
