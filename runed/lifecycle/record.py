"""The record of the daemon that serves a home.

It is a hint for people and newer clients, and no proof that the daemon lives.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Annotated, Self

import msgspec

from runed.errors import LifecycleError
from runed.files import read_record, write_atomically
from runed.processes import MAX_PID, ProcessIdentity, identify, is_alive, send_signal
from runed.version import __version__


class DaemonRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The document `daemon.json`.

    Attributes:
        pid: The process id of the daemon.
        start_time: The start time of that process, as in `ProcessIdentity`.
        scope: The boot and the pid namespace of that process, as in `ProcessIdentity`.
        version: The version of the daemon, as in "0.1.0".
        socket: The path that it listens on.
        http: The URL of its loopback port, such as "http://127.0.0.1:8321"; "" if it has none.
        draining: Whether it takes no new work, and ends once its calls are answered.
        settings: Its settings, as `marks_of` tells them; None from a daemon that does not tell.
        failed: Whether it could not get its default model, with these settings.
    """

    pid: Annotated[int, msgspec.Meta(ge=1, le=MAX_PID)]
    start_time: float
    version: Annotated[str, msgspec.Meta(max_length=128)]
    socket: str
    http: str = ""
    draining: bool = False
    scope: str = ""
    settings: dict[str, str] | None = None
    failed: bool = False

    @classmethod
    def of_this_process(cls, socket: Path, *, http: str = "", settings: dict[str, str] | None = None) -> Self:
        """Return the record of the calling process as the daemon on a socket, and on a loopback port if it has one.

        Args:
            socket: The path that it listens on.
            http: The URL of its loopback port, or "".
            settings: Its settings, as `marks_of` tells them.

        Raises:
            LifecycleError: The system does not tell when this process started.
        """
        identity = identify(os.getpid())
        if identity is None:
            raise LifecycleError("/proc cannot be read, which tells processes apart; mount it: `mount -t proc proc /proc`")
        return cls(
            pid=identity.pid,
            start_time=identity.start_time,
            scope=identity.scope,
            version=__version__,
            socket=os.fspath(socket),
            http=http,
            settings=settings,
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a record. Return None if there is none, or if it is broken."""
        return read_record(path, cls)

    def write(self, path: Path) -> None:
        """Write the record in one step. Its directory must exist."""
        write_atomically(path, msgspec.json.encode(self) + b"\n")

    def tell_draining(self, path: Path) -> None:
        """Note in the record that this daemon drains."""
        self._tell(path, draining=True)

    def tell_failed(self, path: Path, failed: bool) -> None:  # noqa: FBT001 # the only fact
        """Note in the record whether this daemon could not get its default model."""
        self._tell(path, failed=failed)

    def tell_settings(self, path: Path, settings: dict[str, str]) -> None:
        """Note in the record other settings of this daemon."""
        self._tell(path, settings=settings)

    def _tell(self, path: Path, **facts: object) -> None:
        """Change the record, unless it is a successor's. If that fails, the daemon goes on, and clients know less."""
        with contextlib.suppress(OSError):
            own = self._own(path)
            if own is not None and (changed := msgspec.structs.replace(own, **facts)) != own:
                changed.write(path)

    def remove(self, path: Path) -> None:
        """Remove the record, unless it is a successor's."""
        if self._own(path) is not None:
            path.unlink(missing_ok=True)

    def _own(self, path: Path) -> Self | None:
        """Return the record that is there, if it is that of this daemon."""
        found = type(self).read(path)
        return found if found is not None and (found.pid, found.start_time) == (self.pid, self.start_time) else None

    @property
    def process(self) -> ProcessIdentity:
        """The recorded process."""
        return ProcessIdentity(self.pid, self.start_time, self.scope)

    def is_alive(self) -> bool:
        """Return whether the recorded process still lives. Another process of the same pid does not count."""
        return is_alive(self.process)

    def terminate(self) -> bool:
        """Send SIGTERM to the recorded process, which then drains and exits. Return whether it still lived."""
        return send_signal(self.process, signal.SIGTERM)
