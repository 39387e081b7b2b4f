"""Measures how long others wait for the daemon during an attack, and how much memory it takes.

python -m tests.hostile.measure [--peers N] [--seconds S] [WORD ...]     attacks a daemon of its own
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.conftest import FIXTURES
from tests.hostile.attacks import ATTACKS, SERVICE, of
from tests.support import running_daemon
from tools.engine import programs_folder

LONGEST = 300.0
"""Seconds that one attack may take. An attacker whose answers do not come would wait for ever."""

INTERVAL = 0.02
"""Seconds between two calls of the other client."""


@dataclass
class Measured:
    """What others noticed of an attack.

    Attributes:
        health: The longest wait for Health, in seconds.
        embed: The longest wait for the vector of a text that is in the cache, in seconds.
        rss: The most memory of the daemon, in bytes.
        seconds: The duration of the attack.
    """

    health: float = 0.0
    embed: float = 0.0
    rss: int = 0
    seconds: float = 0.0

    @property
    def wait(self) -> float:
        """The longest wait, in seconds."""
        return max(self.health, self.embed)


def memory(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(path: Path, pid: int, name: str, *, peers: int = 1, seconds: float = 0.0) -> Measured:
    """Attack a daemon, and be its other client meanwhile.

    Args:
        path: The daemon's socket.
        pid: The daemon's process.
        name: The name of the attack.
        peers: The number of attackers.
        seconds: The time after which no attacker begins again.

    Raises:
        TimeoutError: The attack has not ended.
    """
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(2)
    attackers = context.Process(target=_attack_all, args=(begin, path, name, peers, seconds))
    attackers.start()
    measured = Measured()
    over = threading.Event()
    others = [threading.Thread(target=ask, args=(path, over, measured)) for ask in (_ask_health, _ask_embed)]
    try:
        begin.wait(60)
        started = time.monotonic()
        for other in others:
            other.start()
        while attackers.is_alive():
            if time.monotonic() - started > seconds + LONGEST:
                raise TimeoutError(f"the attack has not ended after {LONGEST:g} s")
            measured.rss = max(measured.rss, memory(pid))
            attackers.join(INTERVAL)
        measured.seconds = time.monotonic() - started
        time.sleep(0.1)
        measured.rss = max(measured.rss, memory(pid))
    finally:
        over.set()
        attackers.kill()
        attackers.join()
        for other in others:
            if other.ident:
                other.join()
    return measured


def _attack_all(begin: Barrier, path: Path, name: str, peers: int, seconds: float) -> None:
    attack = ATTACKS[name]
    data = attack.make()
    threads = [threading.Thread(target=attack.begin, args=(path, data, seconds)) for _ in range(peers)]
    begin.wait(60)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ask_health(path: Path, over: threading.Event, measured: Measured) -> None:
    for wait in _waits(path, "Health", b"{}", over):
        measured.health = max(measured.health, wait)


def _ask_embed(path: Path, over: threading.Event, measured: Measured) -> None:
    for wait in _waits(path, "Embed", b'{"text":"cached"}', over):
        measured.embed = max(measured.embed, wait)


def _waits(path: Path, method: str, body: bytes, over: threading.Event) -> Iterator[float]:
    """Call a method again and again over one connection. Yield the seconds of each call."""
    head = f"POST {SERVICE}/{method} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(120)
        sock.connect(str(path))
        while not over.is_set():
            started = time.monotonic()
            sock.sendall(request)
            answer = _answer(sock)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            yield time.monotonic() - started
            over.wait(INTERVAL)


def _answer(sock: socket.socket) -> bytes:
    """Read one response, whose body has a length or comes in chunks."""
    data = b""
    while True:
        if not (more := sock.recv(65536)):
            return data
        data += more
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            continue
        lines = head.lower().split(b"\r\n")
        sizes = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
        if (sizes and len(body) >= sizes[0]) or (not sizes and body.endswith(b"0\r\n\r\n")):
            return data


def main(arguments: Sequence[str]) -> None:
    """Measure attacks, and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args(arguments)
    results = {}
    with running_daemon(programs_folder() / "llama-server", FIXTURES / "tiny-qwen3.f32.gguf") as daemon:
        daemon.call("Embed", {"text": "cached"})
        for name in of(options.words):
            before = memory(daemon.process.pid)
            it = measure(daemon.socket, daemon.process.pid, name, peers=options.peers, seconds=options.seconds)
            grown = (it.rss - before) / 2**20
            sys.stdout.write(
                f"{name:50} x{options.peers} health {it.health:6.2f} s  embed {it.embed:6.2f} s  RSS {it.rss / 2**20:5.0f} MiB "
                f"(+{grown:.0f})  took {it.seconds:5.1f} s\n"
            )
            sys.stdout.flush()
            results[name] = {"wait": it.wait, "rss": it.rss}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
