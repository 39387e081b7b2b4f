"""Runs the real command as users do: as another process with its own environment, sometimes on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from runed.processes import ProcessIdentity, is_alive
from tests.support import clean_environment, wait_until

SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Terminal:
    """The result of a command on a terminal: exit code, content of the terminal, and standard output."""

    returncode: int
    screen: str
    stdout: bytes


@dataclass(frozen=True)
class Cli:
    """Runs `runed` with one home."""

    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> Paths:
        return Paths(self.home)

    def with_environment(self, **variables: str) -> Cli:
        return Cli(self.home, {**self.environment, **variables})

    def run(
        self, *arguments: str | bytes, stdin: bytes | None = b"", program: str = "runed", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, for at most `timeout` seconds, and return its output as text."""
        done = subprocess.run(
            [SCRIPTS / program, *arguments],
            env=self.environment_of_a_command(),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL, program: str = "runed") -> subprocess.Popen[bytes]:
        """Start a command whose output is read through pipes."""
        return subprocess.Popen(
            [SCRIPTS / program, *arguments],
            env=self.environment_of_a_command(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run_on_terminal(
        self,
        *arguments: str,
        program: str = "runed",
        stdout_too: bool = False,
        interrupt_when: Callable[[], object] | None = None,
        once_shown: str = "",
        then: Callable[[subprocess.Popen[bytes]], object] = lambda _process: None,
    ) -> Terminal:
        """Run a command whose standard input and error, and maybe output, are a terminal of 100 columns.

        With `interrupt_when`, Ctrl-C is pressed as soon as that is true. `then` is called when the terminal shows `once_shown`.
        """
        controller, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (30, 100))
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [SCRIPTS / program, *arguments],
                env=self.environment_of_a_command() | {"TERM": "xterm"},
                stdin=terminal,
                stdout=terminal if stdout_too else output,
                stderr=terminal,
            )
            os.close(terminal)
            if interrupt_when:
                wait_until(interrupt_when)
                process.send_signal(signal.SIGINT)
            screen = b""
            # Linux ends the reading with EIO once the last descriptor of the terminal's other side is closed.
            with contextlib.suppress(OSError):
                while data := os.read(controller, 65536):
                    screen += data
                    if once_shown and once_shown.encode() in screen:
                        once_shown = ""
                        then(process)
            os.close(controller)
            returncode = process.wait(timeout=60)
            output.seek(0)
            return Terminal(returncode, screen.decode(), output.read())

    def daemon(self) -> ProcessIdentity | None:
        """Return the daemon that serves the home."""
        record = DaemonRecord.read(self.paths.daemon_record)
        return ProcessIdentity(record.pid, record.start_time) if record else None

    def stop(self) -> None:
        """Stop the daemon if there is one, and check that it is gone."""
        daemon = self.daemon()
        done = self.run("stop", "--grace", "1")
        assert done.returncode == 0, done.stderr
        assert daemon is None or not is_alive(daemon)

    def environment_of_a_command(self) -> dict[str, str]:
        """Return the whole environment that `run` gives to a command."""
        return clean_environment(RUNED_HOME=str(self.home), **self.environment)


def press_ctrl_c(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C, as `Cli.run_on_terminal` wants it."""
    process.send_signal(signal.SIGINT)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Wait for a command and return its exit code, output and errors."""
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout.decode(), stderr.decode()


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
    return finish(process)
