"""Runs a real systemd for a user, where that is possible: as root, with systemd installed. It has the units of a test alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import clean_environment, short_home, wait_until

SYSTEMD = next((path for path in map(Path, ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")) if path.exists()), None)

_CGROUPS = tuple(map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")))
"""Places of the control groups of systemd: with version 1, with both, and with version 2."""

_START = """
for group; do mkdir "$group" && echo $$ > "$group/cgroup.procs" || exit 1; done
mount -t tmpfs none /run/systemd && mkdir /run/systemd/system || exit 1
exec {systemd} --user
"""
"""Commands of a shell in a mount namespace of its own. systemd moves all processes of its control group, so it gets its own."""


class CannotRunError(Exception):
    """There is no systemd here, or it does not run. The message tells why."""


class UserManager:
    """A systemd, and a directory for it and for a user who has nothing yet.

    Args:
        root: The directory, which is empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: list[Path] = []

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which commands find this manager and its units."""
        return {
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "HOME": str(self.root / "home"),
        }

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `systemctl --user`."""
        return subprocess.run(
            ["systemctl", "--user", *arguments],
            env=clean_environment(**self.variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self) -> None:
        """Start systemd, in the same directory as before."""
        if SYSTEMD is None:
            raise CannotRunError("systemd is not installed")
        if os.geteuid():
            raise CannotRunError("only root can run a systemd beside that of the machine")
        for name in ("run", "config/systemd/user", "home"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        Path("/run/systemd").mkdir(exist_ok=True)
        self._groups = [place / self.root.name for place in _CGROUPS if os.access(place / "cgroup.procs", os.W_OK)]
        with (self.root / "log").open("wb") as log:
            self._process = process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", _START.format(systemd=SYSTEMD), "sh", *self._groups],
                env=clean_environment(**self.variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def runs() -> bool:
            if process.poll() is not None:
                raise CannotRunError(f"systemd does not run here: {(self.root / 'log').read_text()}")
            return self.systemctl("show", "--property=Version").returncode == 0

        wait_until(runs, what="systemd")

    def stop(self) -> None:
        """Stop systemd and all that it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()


@contextmanager
def user_manager() -> Iterator[UserManager]:
    """Run a systemd until the end of the block.

    Raises:
        CannotRunError: It cannot run here.
    """
    manager = UserManager(short_home())
    try:
        manager.start()
        yield manager
    finally:
        manager.stop()
        shutil.rmtree(manager.root, ignore_errors=True)
