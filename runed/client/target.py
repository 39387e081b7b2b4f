"""The daemon of a client: its socket, and its start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from runed.client.calls.notices import warn_once
from runed.errors import DaemonUnavailableError
from runed.lifecycle.listener import probe
from runed.lifecycle.spawn import ensure_daemon
from runed.paths import Paths, short_socket_path
from runed.settings import Settings, full_path, load_settings, progress_wanted
from runed.version import __version__

_START_TIMEOUT = 60.0
"""Most seconds for the start of a daemon, if the caller sets no limit."""


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon, running or not.

    Attributes:
        socket: The socket that it listens on.
        settings: The settings to start it with; None if it must not be started.
        progress: Whether the settings want downloads to be shown.
    """

    socket: Path
    settings: Settings | None
    progress: bool = True

    @classmethod
    def resolve(cls, *, home: str | os.PathLike[str] | None, socket_path: str | os.PathLike[str] | None, spawn: bool) -> Self:
        """Find the socket of the daemon. Arguments are those of `connect`; an empty one counts as not given.

        Raises:
            SettingsError: A setting cannot be used.
        """
        if socket_path:
            if home:
                raise TypeError("give home or socket_path, not both")
            return cls(short_socket_path(full_path(os.fspath(socket_path))), None, progress_wanted())
        settings = load_settings(home=home or None)
        return cls(Paths(settings.home).socket, settings if spawn else None, settings.progress)

    def ensure(self, timeout: float | None) -> None:
        """Make sure that a daemon listens. If it may be started here, it has at least this version.

        A daemon with other settings than those of this process is told once, by a `RunedWarning`.

        Args:
            timeout: Seconds that it may take; None means 60.

        Raises:
            DaemonUnavailableError: No daemon listens, and none may be started.
            DaemonStartError: See `ensure_daemon`.
        """
        if self.settings is not None:
            limit = _START_TIMEOUT if timeout is None else timeout
            handle = ensure_daemon(self.settings, timeout=limit, minimum_version=__version__)
            if handle.differences:
                warn_once(handle.complaint)
        elif not probe(self.socket):
            raise DaemonUnavailableError(f"no daemon listens on {self.socket}; start one by `runed ensure`")
