"""A daemon takes over the sockets of a service manager, tells it when it serves and ends, and leaves the sockets to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from runed.errors import ForeignPathError, SettingsError
from runed.lifecycle.activation import Activation
from runed.lifecycle.listener import Listener, find_listener
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import find_process
from runed.paths import Paths
from tests.support import RunningDaemon, clean_environment, http_over, process_gone, wait_until

MANAGER = Path(__file__).resolve().parent.parent / "fakes" / "fake_systemd.py"
DAEMON = (sys.executable, "-P", "-m", "runed", "serve")


class RunningManager:
    """A `fake_systemd.py` that listens on the socket of a home, and starts a daemon there."""

    def __init__(self, home: Path, *options: str, **settings: str) -> None:
        self.paths = Paths(home)
        self.log_path = home / "manager.log"
        # Of no use without a model. That is enough for calls such as Health, and takes no engine.
        missing = {"RUNED_MODEL": str(home / "missing.gguf"), "RUNED_LLAMA_SERVER": "/bin/false"}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, MANAGER, *options, self.paths.socket, *DAEMON],
                env=clean_environment(RUNED_HOME=str(home), **(missing | settings)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.wait_for("listening")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def all(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in list(self.events) if entry["event"] == event]

    def told(self) -> list[str]:
        return [line for entry in self.all("told") for line in entry["lines"]]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        return wait_until(lambda: self.all(event)[count - 1 : count], what=f"{event}, after {self.events}, {self.log()}")[0]

    def ask(self) -> int:
        """Return the pid of the daemon, which the connection starts."""
        with http_over(self.paths.socket) as http:
            return int(http.post("/runed.v1.RunedService/Health", json={}).json()["pid"])

    def shut_down(self) -> None:
        with http_over(self.paths.socket) as http:
            assert http.post("/runed.v1.RunedService/Shutdown", json={}).status_code == 200

    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> int:
        """Stop the manager, which stops its daemon, and return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.close()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def manage(home: Path) -> Iterator[Callable[..., RunningManager]]:
    """Run service managers for a test's home."""
    managers: list[RunningManager] = []

    def start(*options: str, **settings: str) -> RunningManager:
        managers.append(RunningManager(home, *options, **settings))
        return managers[-1]

    yield start
    for manager in managers:
        if manager.process.poll() is None:
            manager.stop()
        for started in manager.all("started"):
            wait_until(lambda pid=started["pid"]: process_gone(pid), what="the end of a daemon")  # type: ignore[misc] # bound now


@pytest.mark.parametrize("options", [(), ("--abstract",)], ids=["a path", "an abstract name"])
def test_a_connection_starts_the_daemon_which_tells_when_it_serves_and_ends(
    options: tuple[str, ...], manage: Callable[..., RunningManager]
) -> None:
    manager = manage(*options)
    assert not manager.all("started")
    pid = manager.ask()
    assert manager.wait_for("started")["pid"] == pid
    wait_until(lambda: "READY=1" in manager.told(), what="READY=1")
    record = DaemonRecord.read(manager.paths.daemon_record)
    assert record is not None
    assert record.pid == pid
    listener = find_listener(manager.paths.socket)
    assert listener is not None
    assert listener.pid == pid, "the kernel tells the pid of the daemon, not that of the manager"
    process = find_process(manager.paths)
    assert process is not None
    assert process.pid == pid
    assert "STOPPING=1" not in manager.told()
    assert manager.stop() == 0
    assert manager.told().count("READY=1") == 1
    assert "STOPPING=1" in manager.told()
    assert manager.all("exited") == [{"event": "exited", "pid": pid, "code": 0}]
    assert not manager.paths.daemon_record.exists()


@pytest.mark.slow
def test_after_a_shutdown_the_socket_stays_and_the_next_connection_starts_the_next_daemon(
    manage: Callable[..., RunningManager],
) -> None:
    manager = manage()
    first = manager.ask()
    before = manager.paths.socket.lstat().st_ino
    manager.shut_down()
    manager.wait_for("exited")
    assert manager.paths.socket.lstat().st_ino == before
    assert len(manager.all("started")) == 1, "nobody has connected since"
    second = manager.ask()
    assert second != first
    assert [entry["pid"] for entry in manager.all("started")] == [first, second]
    assert manager.stop() == 0
    assert not manager.paths.socket.exists()


def test_a_killed_daemon_is_started_again_on_the_same_socket(manage: Callable[..., RunningManager]) -> None:
    manager = manage()
    first = manager.ask()
    os.kill(first, 9)
    manager.wait_for("started", count=2)
    assert manager.ask() == manager.all("started")[1]["pid"]


def test_the_port_starts_the_daemon_too(manage: Callable[..., RunningManager]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    manager = manage("--port", str(port), RUNED_HTTP=f"127.0.0.1:{port}")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=30) as http:
        assert http.get("/v1/models").status_code == 401
        token = manager.paths.http_token.read_text().strip()
        assert http.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert len(manager.all("started")) == 1


def test_children_get_neither_the_sockets_nor_the_variables(manage: Callable[..., RunningManager], home: Path) -> None:
    engine, seen = home / "engine.py", home / "seen.json"
    engine.write_text(
        f"#!{sys.executable}\nimport json, os, pathlib\n"
        "links = [os.readlink(entry.path) for entry in os.scandir('/proc/self/fd') if os.path.exists(entry.path)]\n"
        f"pathlib.Path({str(seen)!r}).with_suffix('.new').write_text(json.dumps([dict(os.environ), links]))\n"
        f"pathlib.Path({str(seen)!r}).with_suffix('.new').rename({str(seen)!r})\n"
    )
    engine.chmod(0o700)
    (home / "model.gguf").write_bytes(b"GGUF")
    manager = manage(RUNED_LLAMA_SERVER=str(engine), RUNED_MODEL=str(home / "model.gguf"), RUNED_ENGINE="cpu")
    manager.ask()
    wait_until(seen.exists, what="the engine")
    variables, links = json.loads(seen.read_text())
    assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"} & set(variables)
    inode = str(_inode_of_listener(manager.paths.socket))
    assert not [link for link in links if inode in link]


def _inode_of_listener(path: Path) -> int:
    """Return the number of a listening socket, which is not that of its path."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        if line.endswith(f" {path}") and line.split()[3] == "00010000":
            return int(line.split()[6])
    raise AssertionError(f"nobody listens on {path}")


@pytest.mark.slow
def test_a_daemon_that_a_client_started_makes_room_for_the_manager(
    manage: Callable[..., RunningManager], start_daemon: Callable[..., RunningDaemon], home: Path
) -> None:
    older = start_daemon(RUNED_MODEL=str(home / "missing.gguf"))
    older.wait_for("STATUS_DEGRADED")
    older.process.send_signal(signal.SIGSTOP)  # otherwise it might be gone before the manager's daemon looks for it
    manager = manage()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(manager.ask)
        waiting = f"STATUS=waiting for the end of pid {older.process.pid}, which holds the home"
        wait_until(lambda: waiting in manager.told(), what=waiting)
        older.process.send_signal(signal.SIGCONT)
        assert answer.result(60) == manager.all("started")[0]["pid"]
    assert older.process.wait(30) == 0
    assert "waiting for the end of the daemon that holds this home" in manager.log()
    assert not manager.all("exited"), "one daemon is enough"


@pytest.mark.slow
def test_a_manager_that_listens_elsewhere_than_the_settings_say_is_told(
    manage: Callable[..., RunningManager], home: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    manager = manage("--port", str(port))
    with socket.create_connection(("127.0.0.1", port)):
        assert manager.wait_for("exited")["code"] == 2
        manager.wait_for("failed")
    assert f"listens on 127.0.0.1, port {port}, but the settings name {home}/embedding.sock; `runed service" in manager.log()
    assert not manager.paths.daemon_record.exists()
    assert len(manager.all("exited")) == 5


def test_variables_of_another_process_are_not_taken_and_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "runed.socket")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    with Activation.take_over() as activation:
        assert activation.claim(Path("/a/socket"), None) == (None, None)
        activation.tell("READY=1")  # a manager that is gone is no reason to end
    assert not [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_"))]


@pytest.mark.parametrize("count", ["", "-1", "x", "0", "٣", "9" * 5000])
def test_a_number_of_sockets_that_cannot_be_is_none(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with Activation.take_over() as activation:
        assert activation.claim(Path("/a/socket"), None) == (None, None)


@pytest.mark.parametrize("kind", ["a file", "a datagram socket", "a socket that does not listen", "nothing"])
def test_a_descriptor_that_is_no_listening_socket_is_refused(kind: str, home: Path) -> None:
    script = (
        "import os, socket, sys\n"
        "kinds = {'a file': lambda: open('/dev/null'), 'nothing': lambda: None,\n"
        "         'a datagram socket': lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),\n"
        "         'a socket that does not listen': lambda: socket.socket(socket.AF_UNIX)}\n"
        "thing = kinds[sys.argv[1]]()\n"
        "os.closerange(3, 3) if thing is None else (thing.fileno() == 3 or os.dup2(thing.fileno(), 3))\n"
        "thing is None or os.set_inheritable(3, True)\n"
        "os.execve(sys.argv[2], sys.argv[2:], {**os.environ, 'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, kind, *DAEMON],
        env=clean_environment(RUNED_HOME=str(home)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "descriptor 3, which is no listening stream socket" in done.stderr


def test_a_socket_that_others_may_open_is_refused(home: Path) -> None:
    path = Paths(home).socket
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0o666)
        with pytest.raises(ForeignPathError, match="SocketMode=0600"):
            Listener.adopt(sock, path)
        path.chmod(0o600)
        with Listener.adopt(sock, path) as listener:
            assert listener.is_ours()
        assert path.exists(), "the manager still listens there"


def test_a_home_behind_a_link_is_known_by_both_paths(home: Path) -> None:
    (home / "real").mkdir(0o700)
    (home / "link").symlink_to("real")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(home / "link" / "s"))
        sock.listen()
        assert stat.S_ISSOCK((home / "real" / "s").stat().st_mode)
        activation = Activation([sock], "")
        assert activation.claim(home / "real" / "s", None) == (sock, None)
        with pytest.raises(SettingsError, match="but the settings name"):
            activation.claim(home / "other", None)
