"""What a service manager hands to a daemon: sockets that listen already, and an address for reports about the daemon.

The protocol is systemd's, of `sd_listen_fds` and `sd_notify`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.errors import SettingsError
from runed.log import get_logger
from runed.settings import take_from_environment

_FIRST_DESCRIPTOR = 3
"""The descriptor of the first socket; the others follow."""

_MAX_SOCKETS = 64
"""Most sockets that are looked at."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""Variables for this process alone. A child that gets them would take descriptors for sockets that are none."""

_REPORT_TIMEOUT = 1.0
"""Seconds that a report may take. It is sent by the event loop."""

_log = get_logger(__name__)


class Activation:
    """The sockets and the address that a daemon got from its service manager.

    At the end of the context, the sockets are closed in this process. Those of the manager go on listening.

    Args:
        sockets: Listening sockets.
        address: The path of a datagram socket, or "@" and an abstract name; "" for none.
    """

    def __init__(self, sockets: list[socket.socket], address: str) -> None:
        self._sockets = sockets
        self._address = address

    @classmethod
    def take_over(cls) -> Self:
        """Take over what this process got. Remove the variables that tell it, and let no child inherit the sockets.

        Raises:
            SettingsError: A descriptor is no listening socket.
        """
        taken = take_from_environment(_VARIABLES)
        count = taken.get("LISTEN_FDS", "")
        sockets: list[socket.socket] = []
        # Another pid means that the variables were meant for the parent, which should have removed them.
        if taken.get("LISTEN_PID") == str(os.getpid()) and re.fullmatch("[0-9]{1,4}", count):
            last = _FIRST_DESCRIPTOR + min(int(count), _MAX_SOCKETS)
            sockets = [_listening(descriptor) for descriptor in range(_FIRST_DESCRIPTOR, last)]
        return cls(sockets, taken.get("NOTIFY_SOCKET", ""))

    def claim(self, path: Path, http: tuple[str, int] | None) -> tuple[socket.socket | None, socket.socket | None]:
        """Return the socket of a path and that of a port, each None if the manager has it not.

        Args:
            path: The path of the daemon's socket.
            http: Host and port of the settings; None for no port.

        Raises:
            SettingsError: The manager listens on something else. Nobody would answer there.
        """
        found: dict[object, socket.socket] = {}
        for sock in self._sockets:
            place = _place_of(sock)
            if place not in {path.resolve(), http}:
                wanted = path if http is None else f"{path} and {http[0]}, port {http[1]}"
                raise SettingsError(
                    f"the service manager listens on {_words(place)}, but the settings name {wanted}; "
                    "`runed service install` makes the two agree"
                )
            found[place] = sock
        return found.get(path.resolve()), found.get(http)

    def tell(self, *lines: str) -> None:
        """Report to the manager. Do nothing if there is none, and only log a failure.

        Args:
            lines: The report, such as "READY=1".
        """
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_REPORT_TIMEOUT)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _log.warning("the service manager cannot be told", report=lines[0], error=error.strerror or str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()


def _listening(descriptor: int) -> socket.socket:
    with contextlib.suppress(OSError):  # it is not open, or no socket
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return sock
        sock.close()
    raise SettingsError(
        f"the service manager handed over descriptor {descriptor}, which is no listening stream socket; "
        "use ListenStream= and Accept=no in its unit"
    )


def _place_of(sock: socket.socket) -> object:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Path(name).resolve() if isinstance(name, str) and name else name
    return tuple(name[:2])


def _words(place: object) -> str:
    return f"{place[0]}, port {place[1]}" if isinstance(place, tuple) else str(place)
