"""The texts by which a service manager knows a daemon: units of systemd, and an agent of launchd."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runed.errors import SettingsError, quoted

COMMAND_KEY = "X-RunedCommand"
"""The key of our own in a unit, with the program that it starts, as JSON. systemd leaves keys that begin with "X-" alone."""

_HEADER = "# `runed service install` writes this file anew, and `runed service remove` removes it."

_STOP_SECONDS = 45
"""Seconds that a service manager waits for the end of a daemon. It needs about 2, and 20 if an engine hangs."""

_START_SECONDS = 360
"""Seconds that a service manager waits for a daemon. It needs about 1, unless it waits for the end of another one."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_OPEN_FILES = 65_536
"""Open files that a daemon may have, each a connection or a file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a service manager has to know.

    Attributes:
        name: The name of the service.
        home: The home of the daemon.
        socket: The socket of the home.
        http: Host and port of the port that the manager opens; None for none.
        command: The `runed` to start, as from `find_command`.
        log: The log of the daemon.
        environment: Variables for the daemon, without `RUNED_HOME`.
        environment_file: The place of these variables, for a manager that reads them from a file.

    Raises:
        SettingsError: A path has a control character, such as a line end. A unit has one setting a line.
    """

    name: str
    home: Path
    socket: Path
    http: tuple[str, int] | None
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    environment_file: Path

    def __post_init__(self) -> None:
        for path in map(str, (self.home, self.log, self.environment_file, *self.command)):
            if _CONTROL.search(path):
                raise SettingsError(
                    f"{quoted(path)} has a line end or another control character, which no path of a service can "
                    "have; choose another RUNED_HOME, or another place for runed"
                )

    @property
    def arguments(self) -> list[str]:
        """The whole command line of the daemon."""
        return [*self.command, "serve", "--log-file", os.fspath(self.log)]


def socket_unit(plan: Plan) -> str:
    """Return the unit of systemd that listens in the place of the daemon."""
    listens = [_specifiers(os.fspath(plan.socket))]
    if plan.http and plan.http[1]:  # systemd cannot let the system choose a port
        host, port = plan.http
        listens.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    streams = "\n".join(f"ListenStream={listen}" for listen in listens)
    return f"""{_HEADER}
[Unit]
Description=Socket of runed, the shared embedding daemon

[Socket]
{streams}
SocketMode=0600
DirectoryMode=0700
Backlog=1024
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def service_unit(plan: Plan) -> str:
    """Return the unit of systemd that starts the daemon.

    docs/service.md tells why each line of its hardening is there, and which are not.
    """
    command = " ".join(_quoted(argument) for argument in plan.arguments)
    home = _quoted(f"RUNED_HOME={plan.home}")
    variables = re.sub(r"([\\*?\[])", r"\\\1", os.fspath(plan.environment_file))  # it would be read as a pattern
    return f"""{_HEADER}
[Unit]
Description=runed, the shared embedding daemon
Requires={plan.name}.socket
After={plan.name}.socket

[Service]
Type=notify
NotifyAccess=main
{COMMAND_KEY}={json.dumps(list(plan.command))}
ExecStart=:{command}
Environment={home}
EnvironmentFile=-{_specifiers(variables)}
StandardError=append:{_specifiers(os.fspath(plan.log))}
WorkingDirectory=/
UMask=0077
Restart=on-failure
TimeoutStartSec={_START_SECONDS}
TimeoutStopSec={_STOP_SECONDS}
KillMode=mixed
OOMPolicy=continue
LimitNOFILE={_OPEN_FILES}

NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


def environment_file(variables: Mapping[str, str]) -> str:
    """Return variables in the form of an `EnvironmentFile` of systemd."""
    lines = [_HEADER]
    for name, value in sorted(variables.items()):
        escaped = re.sub(r'(["\\`$])', r"\\\1", value)  # in double quotes, a backslash protects these four alone
        lines.append(f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"


def command_of_unit(text: str) -> list[str]:
    """Return the program of a unit that `service_unit` made; an empty list if it does not tell."""
    found = re.search(rf"^{COMMAND_KEY}=(.+)$", text, re.MULTILINE)
    try:
        return _words(json.loads(found[1])) if found else []
    except ValueError:
        return []


def agent(plan: Plan, label: str) -> bytes:
    """Return the agent of launchd that starts the daemon, as a property list.

    Args:
        plan: What launchd has to know.
        label: The name of the agent.
    """
    import plistlib  # noqa: PLC0415 # 10 ms that a client does not spend

    return plistlib.dumps(
        {
            "Label": label,
            "ProgramArguments": plan.arguments,
            "EnvironmentVariables": {**plan.environment, "RUNED_HOME": os.fspath(plan.home)},
            "WorkingDirectory": "/",
            "StandardErrorPath": os.fspath(plan.log),
            "Umask": 0o077,
            "RunAtLoad": True,
            # After an exit with 0, as that of `runed stop`, the next client starts it.
            "KeepAlive": {"SuccessfulExit": False},
            # launchd slows the processors and the disk down for other types.
            "ProcessType": "Interactive",
            "ExitTimeOut": _STOP_SECONDS,
        }
    )


def command_of_agent(data: bytes) -> list[str]:
    """Return the program of an agent that `agent` made; an empty list if it does not tell."""
    import plistlib  # noqa: PLC0415 # as above
    from xml.parsers.expat import ExpatError  # noqa: PLC0415 # as above

    try:
        arguments = _words(plistlib.loads(data)["ProgramArguments"])
    except (ValueError, KeyError, TypeError, ExpatError, plistlib.InvalidFileException):
        return []
    return arguments[: arguments.index("serve")] if "serve" in arguments else []


def _words(value: object) -> list[str]:
    """Return a list of texts; an empty one for anything else."""
    return value if isinstance(value, list) and all(isinstance(word, str) for word in value) else []


def _quoted(word: str) -> str:
    """Return a word of a unit. In quotes, systemd reads escapes as C does, and "%" begins a specifier everywhere."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return _specifiers(f'"{escaped}"')


def _specifiers(value: str) -> str:
    return value.replace("%", "%%")
