"""`runed service`: let systemd or launchd start the daemon."""

from __future__ import annotations

import argparse
import json

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.watching import watched
from runed.lifecycle.installing import install_service, remove_service
from runed.lifecycle.service import Service, service_of
from runed.paths import Paths
from runed.settings import load_settings

DESCRIPTION = """\
Let systemd (Linux) or launchd (macOS) start the daemon, instead of the first
client. systemd listens on the socket of the home, and on the port of
RUNED_HTTP, from the login on. It starts the daemon when somebody connects.
A home has one daemon in any case: clients let the service start it.

  install   write the service and start it; once more to take new settings of
            the environment, or another `runed`
  remove    stop the daemon and remove the service
  status    tell whether it is installed and listens
"""

EPILOG = """\
examples:
  runed service install
  runed service status --json
  runed service remove

exit codes of `runed service status`: 0 if the service listens, 1 if it is
installed and does not listen, 3 if it is not installed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("action", choices=("install", "remove", "status"), metavar="install|remove|status")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked, and print the result."""
    settings = load_settings()
    paths = Paths(settings.home)
    if arguments.action == "remove":
        with watched(paths, patience=None):
            removed = remove_service(settings)
        return _tell_removal(removed, paths, as_json=arguments.json)
    if arguments.action == "install":
        with watched(paths, patience=None):
            install_service(settings)
    service = service_of(settings.home)
    if service is not None:
        return _tell_status(service, paths, as_json=arguments.json)
    if arguments.json:
        print(json.dumps({"installed": False, "home": str(settings.home)}, indent=2))
    else:
        tell(f"no service is installed for {settings.home}: clients start the daemon; `runed service install` installs one")
    return ExitCode.NOT_RUNNING


def _tell_status(service: Service, paths: Paths, *, as_json: bool) -> int:
    state = service.state()
    facts = {
        "installed": True,
        "manager": service.manager,
        "name": service.name,
        "listens": state.listens,
        "runs": state.runs,
        "state": state.words,
        "survives_logout": state.survives_logout,
        "command": service.command(),
        "files": [str(file) for file in service.files],
        "home": str(paths.home),
        "log": str(paths.daemon_log),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        lines = {
            "service": f"{service.name} of {service.manager}",
            "state": state.words,
            "logout": _logout(service, survives=state.survives_logout),
            "command": " ".join(service.command()),
            "files": ", ".join(str(file) for file in service.files),
            "home": str(paths.home),
            "log": str(paths.daemon_log),
        }
        tell("\n".join(f"{name:<9} {value}" for name, value in lines.items()))
    if state.listens:
        return ExitCode.OK
    complain(f"the service does not listen; `{service.trouble}` tells why, and `runed service install` installs it anew")
    return ExitCode.FAILED


def _logout(service: Service, *, survives: bool) -> str:
    if service.manager == "launchd":
        return "it ends with your login session"
    return (
        "it goes on after your last logout"
        if survives
        else "it ends with your last logout; `loginctl enable-linger` lets it go on, and start with the machine"
    )


def _tell_removal(service: Service | None, paths: Paths, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"installed": False, "removed": service is not None, "home": str(paths.home)}, indent=2))
    elif service is None:
        tell(f"no service is installed for {paths.home}")
    else:
        tell(f"removed {service.name} of {service.manager}; from now on, clients start the daemon of {paths.home}")
    return ExitCode.OK
