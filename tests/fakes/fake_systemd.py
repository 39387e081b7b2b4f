"""A service manager that does what systemd does for a daemon with socket activation, without being one.

    fake_systemd.py [--port PORT] [--abstract] SOCKET COMMAND...

It listens on SOCKET, and on 127.0.0.1:PORT. It runs COMMAND when somebody connects and COMMAND does not run yet, and again when
that fails. After five failures in a row, it closes the sockets. SIGTERM ends both. It prints a JSON object about each event.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

FAILURES = 5
"""Most failures in a row. systemd counts starts within 10 s instead, which a busy machine makes fewer."""


def note(event: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


class Manager:
    def __init__(self, path: Path, port: int | None, command: list[str], *, abstract: bool) -> None:
        self.path, self.command = path, command
        self.listeners = [self._listen(path)]
        if port is not None:
            self.listeners.append(socket.create_server(("127.0.0.1", port)))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = f"@runed-test-{os.getpid()}" if abstract else f"{path}.notify"
        self.notify.bind(f"\0{self.address[1:]}" if abstract else self.address)
        self.pid: int | None = None
        self.failures = 0
        self.ending = False

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)  # systemd also takes the path of a socket that somebody listens on
        os.umask(0o177)
        sock.bind(str(path))
        os.umask(0o077)
        sock.listen(1024)
        return sock

    def start(self) -> None:
        self.pid = os.fork()
        if not self.pid:
            for number, listener in enumerate(self.listeners, start=3):
                os.dup2(listener.fileno(), number + 100)
            for number in range(3, 3 + len(self.listeners)):
                os.dup2(number + 100, number)
                os.close(number + 100)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            names = ":".join("runed.socket" for _ in self.listeners)
            variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(self.listeners)), "LISTEN_FDNAMES": names}
            os.execve(self.command[0], self.command, {**os.environ, **variables, "NOTIFY_SOCKET": self.address})
        note("started", pid=self.pid)

    def reap(self) -> None:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.pid = None
                note("exited", pid=pid, code=code)
                self.failures = self.failures + 1 if code else 0
                if self.failures == FAILURES:
                    for listener in self.listeners:
                        listener.close()
                    self.listeners = []
                    note("failed")
                elif code and not self.ending:
                    self.start()

    def run(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.end)
        note("listening", path=str(self.path))
        while not (self.ending and self.pid is None):
            idle = self.listeners if self.pid is None and not self.ending else []
            watched: list[int | socket.socket] = [reader, self.notify, *idle]
            ready = select.select(watched, [], [])[0]
            if self.notify in ready:
                note("told", lines=self.notify.recv(4096).decode().split("\n"))
            if reader in ready:
                os.read(reader, 4096)
                self.reap()
            elif any(listener in ready for listener in idle):
                self.start()
        self.path.unlink(missing_ok=True)

    def end(self, *_: object) -> None:
        self.ending = True
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--abstract", action="store_true")
    parser.add_argument("socket", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    Manager(arguments.socket, arguments.port, arguments.command, abstract=arguments.abstract).run()


main()
