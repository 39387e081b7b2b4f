"""A `launchctl` that keeps the agents of one domain in a folder, and runs their programs as launchd does.

    fake_launchctl.py print|bootstrap|bootout|kickstart|kill ...

The folder is LAUNCHCTL_STATE. It has a file for each loaded agent, with the pid of its program.
"""

from __future__ import annotations

import os
import plistlib
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STATE = Path(os.environ["LAUNCHCTL_STATE"])
NOT_FOUND = 113


def run(agent: Path) -> None:
    plist = plistlib.loads(agent.with_suffix(".plist").read_bytes())
    with Path(plist["StandardErrorPath"]).open("ab") as log:
        process = subprocess.Popen(
            plist["ProgramArguments"],
            env=plist["EnvironmentVariables"],
            cwd=plist["WorkingDirectory"],
            stderr=log,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    agent.write_text(str(process.pid))


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def main() -> int:
    STATE.mkdir(exist_ok=True)
    action, arguments = sys.argv[1], sys.argv[2:]
    if action == "bootstrap":
        source = Path(arguments[1])
        (STATE / source.name).write_bytes(source.read_bytes())
        run((STATE / source.name).with_suffix(".agent"))
        return 0
    if arguments[-1].count("/") == 1:  # a domain, such as gui/501
        return 0
    agent = STATE / f"{arguments[-1].rpartition('/')[2]}.agent"
    if not agent.exists():
        sys.stderr.write(f"Could not find service {arguments[-1]}\n")
        return NOT_FOUND
    pid = int(agent.read_text())
    if action == "kickstart" and not lives(pid):
        run(agent)
    if action == "print":
        sys.stdout.write(f"state = {'running' if lives(pid) else 'not running'}\n")
    if action in {"kill", "bootout"}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while lives(pid):
            time.sleep(0.02)
    if action == "bootout":
        agent.unlink()
    return 0


sys.exit(main())
