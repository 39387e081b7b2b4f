"""The service of a home: the unit of systemd, or the agent of launchd, that starts its daemon.

Where a service is installed, clients let it start the daemon, so that a home never has a daemon of both.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runed.errors import DaemonStartError, LifecycleError
from runed.files import write_atomically
from runed.lifecycle.launch import LogTail
from runed.lifecycle.listener import find_listener
from runed.lifecycle.units import (
    Plan,
    agent,
    command_of_agent,
    command_of_unit,
    environment_file,
    service_unit,
    socket_unit,
)
from runed.locking import LockFile
from runed.paths import Paths
from runed.settings import full_path, manager_environment, user_configuration

_COMMAND_TIMEOUT = 30.0
"""Seconds that a command of the manager may take that starts no daemon."""

_STOP_TIMEOUT = 60.0
"""Seconds that the manager may take to stop a daemon."""

_POLL = 0.05
"""Seconds between two looks at the socket."""

_LINGERING = Path("/var/lib/systemd/linger")
"""The directory with a file for each user whose services outlive the last logout."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the manager tells of a service.

    Attributes:
        listens: Whether the next call starts the daemon, or the daemon runs.
        runs: Whether the daemon runs by the service.
        words: The state in words of the manager.
        survives_logout: Whether it goes on after the last logout.
    """

    listens: bool
    runs: bool
    words: str
    survives_logout: bool


class Service(Protocol):
    """The service of a home, installed or not.

    Attributes:
        manager: The program that manages it: "systemd" or "launchd".
        name: Its name.
        files: The files that make it, the first of which tells that it is installed.
        listens_itself: Whether the manager listens on the socket, and starts the daemon when somebody connects.
        after_stop: The sentence that tells what starts the daemon again after `runed stop`.
        trouble: The command that shows why it fails.
    """

    manager: str
    name: str
    files: tuple[Path, ...]
    listens_itself: bool
    after_stop: str
    trouble: str

    def command(self) -> list[str]:
        """Return the `runed` that it starts; an empty list if it does not tell."""

    def is_reachable(self) -> bool:
        """Return whether the manager of this user runs, and can be asked."""

    def write(self, plan: Plan) -> None:
        """Write the files."""

    def load(self) -> None:
        """Let the manager read the files, and start the service at each login.

        Raises:
            LifecycleError: The manager refuses.
        """

    def start(self, timeout: float) -> bool:
        """Let the manager start the daemon, and wait until that listens.

        Args:
            timeout: Seconds that it may take.

        Returns:
            False if the manager cannot be asked.

        Raises:
            DaemonStartError: The daemon ended, or did not listen in time.
        """

    def silence(self) -> None:
        """Stop the daemon, and do not start it when somebody connects, until `start` or the next login."""

    def unload(self) -> None:
        """Stop the daemon, and let the manager forget the service. Its files remain."""

    def forget(self) -> None:
        """Let the manager notice that the files are gone."""

    def state(self) -> ServiceState:
        """Ask the manager for the state."""


def service_at(home: Path) -> Service:
    """Return the service that a home has or could have on this system."""
    return Launchd(home) if sys.platform == "darwin" else Systemd(home)


def service_of(home: Path) -> Service | None:
    """Return the service of a home that is installed; None if there is none."""
    service = service_at(home)
    # Path.is_file raises where HOME is another user's, such as after `su`.
    return service if os.path.isfile(service.files[0]) else None  # noqa: PTH113 # see above


def is_dormant(paths: Paths) -> bool:
    """Return whether no daemon runs and a service manager listens for it, so that a connection would start one."""
    service = service_of(paths.home)
    return service is not None and service.listens_itself and not LockFile(paths.daemon_lock).is_held()


def _after_stop(name: str) -> str:
    return (
        f"the service {name} starts the daemon again with the next call; "
        "`runed stop --for 10m` keeps it stopped for a time, and `runed service remove` removes the service"
    )


def _suffix(home: Path) -> str:
    """Return what tells the service of a home from that of the usual home."""
    if home == full_path("~/.runed"):
        return ""
    import hashlib  # noqa: PLC0415 # 3 ms that the usual home does not spend

    return f"-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"


class Systemd:
    """A unit of systemd for the user, with a socket that starts the daemon. It is a `Service`."""

    manager = "systemd"
    listens_itself = True

    def __init__(self, home: Path) -> None:
        self.name = f"runed{_suffix(home)}"
        folder = user_configuration() / "systemd" / "user"
        self._socket, self._service = f"{self.name}.socket", f"{self.name}.service"
        paths = Paths(home)
        self._paths = paths
        self.files: tuple[Path, ...] = (folder / self._socket, folder / self._service, paths.service_environment)
        self.after_stop = _after_stop(self.name)
        self.trouble = f"systemctl --user status {self._socket} {self._service}"

    def command(self) -> list[str]:
        """See `Service`."""
        try:
            return command_of_unit(self.files[1].read_text("utf-8"))
        except (OSError, ValueError):
            return []

    def is_reachable(self) -> bool:
        """See `Service`."""
        return _ask(["systemctl", "--user", "show", "--property=Version"]).returncode == 0

    def write(self, plan: Plan) -> None:
        """See `Service`."""
        socket, service, environment = self.files
        _make_folder(socket.parent)
        # The socket comes last, since it tells that the service is installed.
        write_atomically(environment, environment_file(plan.environment).encode())
        write_atomically(service, service_unit(plan).encode())
        write_atomically(socket, socket_unit(plan).encode())

    def load(self) -> None:
        """See `Service`."""
        self._order("daemon-reload")
        self._order("enable", self._socket)
        self._order("restart", self._socket)

    def start(self, timeout: float) -> bool:
        """See `Service`."""
        if not self.is_reachable():
            return False
        deadline = time.monotonic() + timeout
        with LogTail(self._paths.daemon_log) as log:
            _ask(self._systemctl("reset-failed", self._socket, self._service))
            # Not while it listens: what has connected would be cut off, and a daemon that starts would be ended.
            if find_listener(self._paths.socket) is None:
                self._order("restart", self._socket)
            if _ask(self._systemctl("start", self._service), timeout=max(deadline - time.monotonic(), 1.0)).returncode:
                raise _failure(self, log)
        return True

    def silence(self) -> None:
        """See `Service`."""
        self._order("stop", self._socket, self._service, timeout=_STOP_TIMEOUT)

    def unload(self) -> None:
        """See `Service`."""
        _ask(self._systemctl("disable", self._socket))
        try:
            self.silence()
        except LifecycleError:
            state = self.state()  # systemd fails to stop a unit that it could not load, although nothing of it runs
            if state.listens or state.runs:
                raise
        _ask(self._systemctl("reset-failed", self._socket, self._service))

    def forget(self) -> None:
        """See `Service`."""
        _ask(self._systemctl("daemon-reload"))

    def state(self) -> ServiceState:
        """See `Service`."""
        states = []
        for unit in (self._socket, self._service):
            shown = _ask(self._systemctl("show", "--property=ActiveState", "--property=SubState", unit)).stdout
            values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
            states.append((values.get("ActiveState", "unknown"), values.get("SubState", "unknown")))
        (socket, socket_detail), (service, service_detail) = states
        unreachable = {socket, service} == {"unknown"}
        return ServiceState(
            listens=socket == "active",
            runs=service in {"active", "reloading", "deactivating"},
            words="systemd cannot be asked for this user"
            if unreachable
            else f"{self._socket} is {socket} ({socket_detail}), {self._service} is {service} ({service_detail})",
            survives_logout=(_LINGERING / _user()).exists(),
        )

    def _systemctl(self, *arguments: str) -> list[str]:
        return ["systemctl", "--user", "--no-ask-password", *arguments]

    def _order(self, *arguments: str, timeout: float = _COMMAND_TIMEOUT) -> None:
        _order(self._systemctl(*arguments), timeout)


class Launchd:
    """An agent of launchd, which runs the daemon from the login on. It is a `Service`."""

    manager = "launchd"
    listens_itself = False

    def __init__(self, home: Path) -> None:
        self.name = f"dev.runed.daemon{_suffix(home)}"
        self.files: tuple[Path, ...] = (full_path("~/Library/LaunchAgents") / f"{self.name}.plist",)
        self._paths = Paths(home)
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{self.name}"
        self.after_stop = _after_stop(self.name)
        self.trouble = f"launchctl print {self._target}"

    def command(self) -> list[str]:
        """See `Service`."""
        try:
            return command_of_agent(self.files[0].read_bytes())
        except OSError:
            return []

    def is_reachable(self) -> bool:
        """See `Service`."""
        return _ask(["launchctl", "print", self._domain]).returncode == 0

    def write(self, plan: Plan) -> None:
        """See `Service`."""
        _make_folder(self.files[0].parent)
        write_atomically(self.files[0], agent(plan, self.name))

    def load(self) -> None:
        """See `Service`."""
        _order(["launchctl", "bootstrap", self._domain, str(self.files[0])], _COMMAND_TIMEOUT)

    def start(self, timeout: float) -> bool:
        """See `Service`."""
        if not self.is_reachable():
            return False
        deadline = time.monotonic() + timeout
        with LogTail(self._paths.daemon_log) as log:
            if _ask(["launchctl", "kickstart", self._target]).returncode:  # it was unloaded
                self.load()
            while find_listener(self._paths.socket) is None:
                if time.monotonic() >= deadline:
                    raise _failure(self, log)
                time.sleep(_POLL)
        return True

    def silence(self) -> None:
        """See `Service`."""
        _ask(["launchctl", "kill", "SIGTERM", self._target])

    def unload(self) -> None:
        """See `Service`."""
        _ask(["launchctl", "bootout", self._target], timeout=_STOP_TIMEOUT)

    def forget(self) -> None:
        """See `Service`."""

    def state(self) -> ServiceState:
        """See `Service`."""
        shown = _ask(["launchctl", "print", self._target])
        runs = "state = running" in shown.stdout
        words = "is not loaded" if shown.returncode else "runs" if runs else "is loaded, and does not run"
        return ServiceState(
            listens=not shown.returncode, runs=runs, words=f"the agent {self.name} {words}", survives_logout=False
        )


def _failure(service: Service, log: LogTail) -> DaemonStartError:
    return DaemonStartError(
        f"{service.manager} could not start the daemon, as `{service.trouble}` shows; {log.told()}",
    )


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user whom the system does not know
        return str(os.getuid())


def _ask(command: list[str], *, timeout: float = _COMMAND_TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run a command of the manager. One that is missing or does not end counts as failed."""
    try:
        return subprocess.run(
            command,
            env=manager_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {timeout:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", error.strerror or str(error))


def _order(command: list[str], timeout: float) -> None:
    result = _ask(command, timeout=timeout)
    if result.returncode:
        said = result.stderr.strip() or f"exit code {result.returncode}"
        raise LifecycleError(f"`{' '.join(command)}` failed: {said}")
