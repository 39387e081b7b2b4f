"""The faults of a run of chaos. Each breaks something on purpose, and returns when the healing may begin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

import runed
from runed.errors import RunedError
from runed.processes import identify
from tests.chaos.clients import ProgramClient
from tests.chaos.ground import RUNED, Ground

HEALED, THAWED = 5.0, 30.0
"""Seconds to heal: after any fault, and after the freeze of an engine, which looks like a long computation for a while."""


@dataclass(frozen=True)
class Scene:
    """What a fault may attack.

    Attributes:
        ground: The home.
        programs: The clients that are processes.
        random: Decides what a fault leaves open.
    """

    ground: Ground
    programs: Sequence[ProgramClient]
    random: Random

    def pause(self, least: float, most: float) -> None:
        """Sleep for a random time, in seconds."""
        time.sleep(self.random.uniform(least, most))


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: Its name in the report.
        act: Does it.
        bar: Seconds within which the daemon serves again.
    """

    name: str
    act: Callable[[Scene], None]
    bar: float = HEALED


def send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes that may have just ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def signal_daemon(number: signal.Signals) -> Callable[[Scene], None]:
    """Return a fault that sends a signal to the daemon."""
    return lambda scene: send(scene.ground.daemons(), number)


def signal_engine(number: signal.Signals) -> Callable[[Scene], None]:
    """Return a fault that sends a signal to the engine."""
    return lambda scene: send(scene.ground.engines(), number)


def signal_busy_engine(number: signal.Signals) -> Callable[[Scene], None]:
    """Return a fault that sends a signal to the engine while that computes. It may never answer then, and never end."""

    def act(scene: Scene) -> None:
        flood = threading.Thread(target=_flood, args=(scene, 0))
        flood.start()
        scene.pause(0.05, 0.3)
        send(scene.ground.engines(), number)
        flood.join()

    return act


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes for the time of the block."""
    send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send(processes, signal.SIGCONT)


def freeze_daemon(scene: Scene) -> None:
    """Stop the daemon for a while, as a debugger or a laptop's lid does."""
    with frozen(scene.ground.daemons()):
        scene.pause(0.5, 3.0)


def pause_engine(scene: Scene) -> None:
    """Stop the engine for a while, and let it go on."""
    with frozen(scene.ground.engines()):
        scene.pause(0.5, 3.0)


def kill_both(scene: Scene) -> None:
    """End daemon and engine at once, as the kernel does when memory is short."""
    send([*scene.ground.daemons(), *scene.ground.engines()], signal.SIGKILL)


def kill_twice(scene: Scene) -> None:
    """End the daemon, and its successor while that starts."""
    for _ in range(2):
        send(scene.ground.daemons(), signal.SIGKILL)
        scene.pause(0.1, 1.0)
    send(scene.ground.daemons(), signal.SIGKILL)


def stop_by_command(scene: Scene) -> None:
    """Run `runed stop` while clients call."""
    scene.ground.run("stop", "--grace", "1")


def start_many(scene: Scene) -> None:
    """End the daemon, and run `runed ensure` eight times at once."""
    send(scene.ground.daemons(), signal.SIGKILL)
    environment = scene.ground.environment()
    starters = [
        subprocess.Popen([RUNED, "ensure"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(8)
    ]
    for starter in starters:
        starter.wait(90)


def kill_starter(scene: Scene) -> None:
    """End the daemon, and then a program that starts the next one."""
    send(scene.ground.daemons(), signal.SIGKILL)
    starter = subprocess.Popen(
        [RUNED, "ensure"], env=scene.ground.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    scene.pause(0.05, 0.6)
    starter.kill()
    starter.wait()


def kill_clients(scene: Scene) -> None:
    """End all programs that are clients."""
    for program in scene.programs:
        if (process := program.process) is not None:
            program.attacked = True
            process.kill()


def interrupt_clients(scene: Scene) -> None:
    """Send SIGTERM to all programs that are clients."""
    for program in scene.programs:
        if (process := program.process) is not None:
            program.attacked = True
            process.terminate()


def freeze_clients(scene: Scene) -> None:
    """Stop the clients for a while. Answers that nobody reads must not stop the daemon."""
    processes = []
    for program in scene.programs:
        if (process := program.process) is not None:
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(process.pid))
    with frozen(processes):
        scene.pause(0.5, 3.0)


def remove(*names: str) -> Callable[[Scene], None]:
    """Return a fault that removes files or directories of the home."""

    def act(scene: Scene) -> None:
        for name in names:
            path = scene.ground.home / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    return act


def remove_home(scene: Scene) -> None:
    """Remove the whole home under a running daemon. The daemon may make a file while the home is removed."""
    for _ in range(20):
        shutil.rmtree(scene.ground.home, ignore_errors=True)
        if not scene.ground.home.exists():
            return


def spoil(*names: str) -> Callable[[Scene], None]:
    """Return a fault that replaces files of the home by others, cuts them, or writes into them; the daemon dies then."""

    def act(scene: Scene) -> None:
        for name in names:
            spoil_file(scene.ground.home / name, scene.random)
        send(scene.ground.daemons(), signal.SIGKILL)

    return act


def spoil_file(path: Path, random: Random) -> None:
    """Damage a file in one of several ways. Make it if it is not there."""
    if path.parent.is_dir() and not path.is_dir():
        data = path.read_bytes() if path.is_file() else b""
        damaged = random.choice(
            [
                b"",
                data[: random.randint(0, len(data))],
                random.randbytes(random.randint(1, 4096)),
                b"[" * 10_000,
                b'{"version": 1}',
                b"\xff\xfe" + data,
                data[: len(data) // 2] + random.randbytes(16) + data[len(data) // 2 :],
            ]
        )
        if random.random() < 0.5:  # the same file, which somebody may have open or mapped
            with path.open("r+b" if path.is_file() else "wb") as file:
                file.truncate(0)
                file.write(damaged)
        else:
            path.unlink(missing_ok=True)
            path.write_bytes(damaged)


def cut_while_in_use(scene: Scene) -> None:
    """Cut the files that a running daemon has open."""
    for name in ("cache/vectors.sqlite", "cache/vectors.sqlite-wal", "cache/centroids.bin", "logs/daemon.log"):
        with suppress(OSError):
            os.truncate(scene.ground.home / name, scene.random.choice([0, 100, 5000]))


def forge_record(scene: Scene) -> None:
    """Name a stranger in `daemon.json`, an older daemon to all appearances, and let clients and `runed stop` act on it."""
    identity = identify(scene.ground.bystander.pid)
    assert identity is not None, "the bystander is gone"
    record = {
        "pid": identity.pid,
        "start_time": identity.start_time,
        "version": "0.0.1",
        "socket": str(scene.ground.paths.socket),
    }
    with suppress(OSError):
        scene.ground.paths.daemon_record.write_text(json.dumps(record))
    if scene.random.random() < 0.5:
        send(scene.ground.daemons(), signal.SIGKILL)
    scene.ground.run("stop", "--grace", "1")
    scene.ground.paths.daemon_record.unlink(missing_ok=True)


def forge_engine_record(scene: Scene) -> None:
    """Name a stranger in `run/engine.json`, then end the daemon. Its successor must not end the stranger as an orphan."""
    identity = identify(scene.ground.bystander.pid)
    assert identity is not None, "the bystander is gone"
    send(scene.ground.daemons(), signal.SIGKILL)
    with suppress(OSError):
        scene.ground.paths.engine_record.write_text(json.dumps({"pid": identity.pid, "start_time": identity.start_time}))


def block_socket(scene: Scene) -> None:
    """Put something else in the place of the socket for a while."""
    path = scene.ground.paths.socket
    with suppress(OSError):
        path.unlink(missing_ok=True)
        match scene.random.randrange(4):
            case 0:
                path.write_bytes(b"not a socket")
            case 1:
                path.symlink_to("/nowhere")
            case 2:
                path.mkdir()
            case _:
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(str(path))
        scene.pause(0.2, 2.0)
    with suppress(OSError):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def fill_queue(scene: Scene) -> None:
    """Send more texts at once than the queue holds."""
    floods = [threading.Thread(target=_flood, args=(scene, number)) for number in range(8)]
    for thread in floods:
        thread.start()
    for thread in floods:
        thread.join()


def _flood(scene: Scene, number: int) -> None:
    """Embed many texts that no cache has."""
    texts = [f"flood {number} {index} {time.monotonic()}" for index in range(400)]
    with suppress(RunedError), runed.connect(socket_path=scene.ground.paths.socket) as client:
        client.embed_batch(texts, timeout=3.0)  # it waits for room in the queue, as long as that takes


def open_connections(scene: Scene) -> None:
    """Open connections that send nothing, or half a request, and leave them for a while."""
    connections = []
    try:
        for index in range(200):
            connection = socket.socket(socket.AF_UNIX)
            connections.append(connection)
            connection.settimeout(1.0)
            try:
                connection.connect(str(scene.ground.paths.socket))
                if index % 2:
                    connection.send(b"POST /runed.v1.RunedService/Embed HTTP/1.1\r\nHost: runed\r\nContent-Le")
            except OSError:  # the daemon is away, or its backlog is full
                break
        scene.pause(0.5, 2.0)
    finally:
        for connection in connections:
            connection.close()


def break_off(scene: Scene) -> None:
    """Begin requests and go away in the middle."""
    for index in range(50):
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(1.0)
            connection.connect(str(scene.ground.paths.socket))
            body = json.dumps({"texts": [f"left alone {index} {number}" for number in range(50)]}).encode()
            connection.send(
                b"POST /runed.v1.RunedService/EmbedBatch HTTP/1.1\r\nHost: runed\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body[: scene.random.randint(0, len(body))]
            )


_STATE = ("daemon.json", "cache/verified.json", "cache/engine-quirks.json", "cache/tuning.json", "run/engine.json")

FAULTS = (
    Fault("kill the daemon", signal_daemon(signal.SIGKILL)),
    Fault("SIGTERM to the daemon", signal_daemon(signal.SIGTERM)),
    Fault("SIGINT to the daemon", signal_daemon(signal.SIGINT)),
    Fault("SIGHUP to the daemon", signal_daemon(signal.SIGHUP)),
    Fault("SIGABRT to the daemon", signal_daemon(signal.SIGABRT)),
    Fault("freeze the daemon for a while", freeze_daemon),
    Fault("runed stop", stop_by_command),
    Fault("kill the engine", signal_engine(signal.SIGKILL)),
    Fault("SIGTERM to a busy engine", signal_busy_engine(signal.SIGTERM)),
    Fault("SIGINT to a busy engine", signal_busy_engine(signal.SIGINT)),
    Fault("SIGSEGV to the engine", signal_engine(signal.SIGSEGV)),
    Fault("freeze the engine for a while", pause_engine),
    Fault("freeze the engine for ever", signal_engine(signal.SIGSTOP), THAWED),
    Fault("kill daemon and engine", kill_both),
    Fault("kill the daemon three times", kill_twice),
    Fault("kill the daemon, start eight", start_many),
    Fault("kill the daemon and its starter", kill_starter),
    Fault("kill the clients", kill_clients),
    Fault("SIGTERM to the clients", interrupt_clients),
    Fault("freeze the clients for a while", freeze_clients),
    Fault("remove the socket", remove("embedding.sock")),
    Fault("replace the socket for a while", block_socket),
    Fault("remove the socket of the engine", remove("run/engine.sock")),
    Fault("remove daemon.json", remove("daemon.json")),
    Fault("remove the locks", remove("daemon.lock", "spawn.lock", "install.lock")),
    Fault("remove logs, cache and run", remove("logs", "cache", "run")),
    Fault("remove the home", remove_home),
    Fault("spoil the state files", spoil(*_STATE)),
    Fault("spoil the caches", spoil("cache/vectors.sqlite", "cache/centroids.bin", "cache.secret", "cache/vectors.sqlite-wal")),
    Fault("cut files in use", cut_while_in_use),
    Fault("forge daemon.json", forge_record),
    Fault("forge run/engine.json", forge_engine_record),
    Fault("fill the queue", fill_queue),
    Fault("open 200 connections", open_connections),
    Fault("break off 50 requests", break_off),
)
"""All faults. A run deals them like cards: each comes once before any comes again."""
