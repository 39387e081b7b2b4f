"""Attacks on engine, connections, memory and time."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

import runed
from runed.errors import RunedError
from runed.processes import resident_bytes
from tests.fuzz.watch import other_client
from tests.hostile.arena import RUNED, Arena, Measured, attack, said
from tests.support import RunningDaemon

HEALED, THAWED = 5.0, 30.0

_LONG = "a long text " * 900


def _seconds_to_serve(daemon: RunningDaemon, since: float, *, patience: float = 100.0) -> float:
    """Embed new texts until one gets its vector. Return the seconds since the fault."""
    number = 0
    while time.monotonic() - since < patience:
        number += 1
        with suppress(RunedError), runed.connect(socket_path=daemon.socket) as client:
            client.embed(f"a new text {number}", timeout=patience)
            return time.monotonic() - since
        time.sleep(0.05)
    return patience


@contextmanager
def _busy(daemon: RunningDaemon) -> Iterator[None]:
    """Let the engine compute during the block."""
    over = threading.Event()

    def work(name: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            with suppress(RunedError), runed.connect(socket_path=daemon.socket) as client:
                client.embed_batch([f"{name} {number} {index} {_LONG}" for index in range(8)], timeout=20, truncate="end")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _signal_engine(number: signal.Signals, bar: float) -> Callable[[Arena], Measured]:
    def run(arena: Arena) -> Measured:
        daemon = arena.started(RUNED_CACHE_SIZE="0")
        engine = int(daemon.health()["enginePid"])
        with _busy(daemon):
            since = time.monotonic()
            os.kill(engine, number)
            took = _seconds_to_serve(daemon, since)
        return Measured(f"{took:.1f} s", took <= bar, time=True)

    return run


attack("7", "SIGTERM to a busy engine", f"service within {HEALED:g} s", slow=True)(_signal_engine(signal.SIGTERM, HEALED))
attack("7", "SIGINT to a busy engine", f"service within {HEALED:g} s", slow=True)(_signal_engine(signal.SIGINT, HEALED))
attack("7", "SIGHUP to a busy engine", f"service within {HEALED:g} s", slow=True)(_signal_engine(signal.SIGHUP, HEALED))
attack("7", "SIGSTOP to a busy engine", f"service within {THAWED:g} s", slow=True)(_signal_engine(signal.SIGSTOP, THAWED))


@attack(
    "8", "after one text the engine answers NaN to every text", "the next text gets a vector; the text is not blamed for ever"
)
def poisoned(arena: Arena) -> Measured:
    engine = arena.fake_engine(on={"poison": "poison"})
    daemon = arena.started(engine=engine.executable, RUNED_CACHE_SIZE="0")
    with runed.connect(socket_path=daemon.socket) as client:
        with suppress(RunedError):
            client.embed("poison", timeout=60)
        since = time.monotonic()
        try:
            client.embed("an innocent text", timeout=60)
        except RunedError as error:
            return Measured(f"an innocent text is refused with {error.reason}", ok=False)
    return Measured(f"an innocent text is served after {time.monotonic() - since:.1f} s", ok=True)


@attack("9", "one text of 64 kills the engine", "63 vectors, its index is named, at most 10 deaths; remembered afterwards")
def deadly_text(arena: Arena) -> Measured:
    engine = arena.fake_engine(on={"deadly": "crash"})
    daemon = arena.started(engine=engine.executable)
    texts = [f"text {number}" for number in range(64)]
    texts[41] = "deadly"
    with runed.connect(socket_path=daemon.socket) as client:
        try:
            items = client.embed_items(texts, timeout=90)
        except RunedError as error:
            return Measured(f"the whole call is refused with {error.reason}, {len(engine.launches) - 1} deaths", ok=False)
        deaths = len(engine.launches) - 1
        failed = [index for index, item in enumerate(items) if isinstance(item, RunedError)]
        with suppress(RunedError):
            client.embed("deadly", timeout=30)
    again = len(engine.launches) - 1 - deaths
    return Measured(
        f"refused: {failed}, {deaths} deaths, {again} more when it is sent again",
        failed == [41] and deaths <= 10 and again == 0,
    )


@attack("9", "a job of 200 lines with a deadly one, --keep-going", "199 vectors, and the line is named")
def deadly_line(arena: Arena) -> Measured:
    engine = arena.fake_engine(on={"deadly": "crash"})
    home, lines, output = arena.new(), arena.folder / "in.jsonl", arena.folder / "out.jsonl"
    lines.write_text("".join(json.dumps("deadly" if number == 77 else f"line {number}") + "\n" for number in range(200)))
    result = arena.run(
        home, "embed", "--batch", str(lines), "-o", str(output), "--keep-going", timeout=120,
        RUNED_LLAMA_SERVER=str(engine.executable),
    )  # fmt: skip
    arena.run(home, "stop")
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    failed = [row["index"] for row in rows if "error" in row]
    return Measured(f"{len(rows) - len(failed)} vectors, failed: {failed}; {said(result)}", len(rows) == 200 and failed == [77])


@attack("10", "700 embed() in one asyncio.gather", "no call fails")
def gathered(arena: Arena) -> Measured:
    async def gather() -> list[object]:
        async with await runed.connect_async(socket_path=arena.daemon.socket) as client:
            calls = (client.embed(f"text {number}", timeout=60) for number in range(700))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    failures = [type(result).__name__ for result in asyncio.run(gather()) if isinstance(result, Exception)]
    return Measured(f"{len(failures)} of 700 fail {set(failures) or ''}", not failures)


_HALF = (
    b"POST /runed.v1.RunedService/Embed HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
)


@contextmanager
def _open_connections(path: Path, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Hold connections, each after it has sent some bytes."""
    connections = []
    try:
        for _ in range(count):
            connection = socket.socket(socket.AF_UNIX)
            connections.append(connection)
            connection.settimeout(2)
            with suppress(OSError):  # the backlog is full, or the daemon closes at once
                connection.connect(str(path))
                connection.sendall(data)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def _seconds_of_a_call(daemon: RunningDaemon) -> float:
    began = time.monotonic()
    try:
        with runed.connect(socket_path=daemon.socket) as client:
            client.embed(f"a text at {began}", timeout=30)
    except RunedError:
        return 30.0
    return time.monotonic() - began


@attack("10", "515 half-sent requests, and 515 silent connections", "another client is served within 0.5 s")
def half_sent(arena: Arena) -> Measured:
    waits = []
    for data in (_HALF, b"", b"POST /run", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"):
        with _open_connections(arena.daemon.socket, 515, data):
            waits.append(_seconds_of_a_call(arena.daemon))
    return Measured(", ".join(f"{wait:.2f} s" for wait in waits), max(waits) < 0.5, time=True)


@attack(
    "10",
    "300 idle connections to a daemon with 256 open files at most",
    "served, below 20 % of a core, below 100 KiB of log in 5 s",
    slow=True,
)
def few_files(arena: Arena) -> Measured:
    home = arena.new()
    started = arena.run(home, "ensure", "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    arena.run(home, "embed", "a text")
    process = psutil.Process(json.loads(started.stdout)["pid"])
    log = home / "logs" / "daemon.log"
    with _open_connections(home / "embedding.sock", 300):
        size, busy = log.stat().st_size, sum(process.cpu_times()[:2])
        time.sleep(5)
        share = (sum(process.cpu_times()[:2]) - busy) / 5
        grown = log.stat().st_size - size
        served = arena.run(home, "embed", "another text", timeout=20).returncode == 0
    arena.run(home, "stop")
    text = f"{'served' if served else 'not served'}, {share:.0%} of a core, {grown / 1024:.0f} KiB of log"
    return Measured(text, served and share < 0.2 and grown < 100 * 1024)


def _bodies(arena: Arena, count: int) -> Measured:
    daemon = arena.started()
    with other_client(daemon.socket) as waits:
        before = most = resident_bytes(daemon.process.pid)
        head = _HALF.replace(b"99", b"%d" % (16 * 2**20 + 1000)) + b'"text":"'
        piece = b"x" * 2**20

        def send(connection: socket.socket) -> None:
            with suppress(OSError):
                for _ in range(16):
                    connection.sendall(piece)

        with _open_connections(daemon.socket, count, head) as connections:
            threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
            for thread in threads:
                thread.start()
            until = time.monotonic() + 20
            while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
                most = max(most, resident_bytes(daemon.process.pid))
                time.sleep(0.05)
        for thread in threads:
            thread.join()
        until = time.monotonic() + 30
        while (after := resident_bytes(daemon.process.pid)) > before * 1.1 and time.monotonic() < until:
            time.sleep(0.2)
    mib = 2**20
    text = f"{(most - before) / mib:.0f} MiB more, {(after / before - 1):+.0%} afterwards, longest wait {waits.longest:.2f} s"
    return Measured(text, most - before < 320 * mib and after <= before * 1.1, time=True)


attack("12", "60 unfinished bodies of 16 MiB", "below 320 MiB more, within 10 % after 30 s", slow=True)(
    lambda arena: _bodies(arena, 60)
)
attack("12", "200 unfinished bodies of 16 MiB", "below 320 MiB more, within 10 % after 30 s", slow=True)(
    lambda arena: _bodies(arena, 200)
)


@attack("13", "8 processes flood the port without a token", "a user of the socket waits 0.5 s at most", slow=True)
def flooded_port(arena: Arena) -> Measured:
    daemon = arena.started(RUNED_HTTP="127.0.0.1:0")
    port = json.loads((daemon.home / "daemon.json").read_text())["http"].rpartition(":")[2]
    code = (
        "import socket, sys, time\n"
        "end = time.monotonic() + 5\n"
        "request = b'POST /v1/embeddings HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n\\r\\n' * 50\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=2) as c:\n"
        "            c.sendall(request)\n"
        "            while c.recv(65536): pass\n"
        "    except OSError: pass\n"
    )
    with other_client(daemon.socket) as waits:
        flooders = [subprocess.Popen([sys.executable, "-S", "-c", code, port]) for _ in range(8)]
        for flooder in flooders:
            flooder.wait()
    return Measured(
        f"longest wait {waits.longest:.2f} s, {waits.failures} failures", waits.longest <= 0.5 and not waits.failures, time=True
    )


@contextmanager
def _frozen(daemon: RunningDaemon) -> Iterator[None]:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@attack("14", "embed(timeout=2) of the blocking client, the daemon is frozen", "ends within 2.5 s", slow=True)
def deadline(arena: Arena) -> Measured:
    daemon = arena.started()
    took = []
    with runed.connect(socket_path=daemon.socket) as client:
        client.embed("a text")
        with _frozen(daemon):
            for _ in range(2):  # over the connection that is open, and over a new one
                began = time.monotonic()
                with suppress(RunedError):
                    client.embed("another", timeout=2)
                took.append(time.monotonic() - began)
    return Measured(", ".join(f"{seconds:.1f} s" for seconds in took), max(took) <= 2.5, time=True)


@attack("14", "`runed embed` while the daemon is frozen", "a word within 6 s", slow=True)
def silent_command(arena: Arena) -> Measured:
    daemon = arena.started()
    with _frozen(daemon):
        command = subprocess.Popen(
            [RUNED, "embed", "a text"], env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(7)
        command.terminate()
    _, errors = command.communicate(timeout=30)
    return Measured(f"said: {errors.decode().strip().splitlines()[:1] or 'nothing'}", bool(errors.strip()))


@attack(
    "14", "`runed status` while the daemon is frozen, and while its backlog is full", "does not say that none runs", slow=True
)
def false_status(arena: Arena) -> Measured:
    daemon = arena.started()
    with _frozen(daemon):
        frozen = arena.run(daemon.home, "status", timeout=30)
        with _open_connections(daemon.socket, 1200):
            full = arena.run(daemon.home, "status", timeout=30)
    wrong = [
        result for result in (frozen, full) if "not running" in result.stdout + result.stderr or result.returncode in {0, 3}
    ]
    return Measured(f"frozen: {said(frozen)}; full: {said(full)}", not wrong)


def _half_closed(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(15)
        connection.connect(str(path))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        data = b""
        with suppress(TimeoutError):
            while chunk := connection.recv(65536):
                data += chunk
        return data


@attack("15", "clients end their sending side after a whole request", "each gets its answer")
def half_closed(arena: Arena) -> Measured:
    from tests.fuzz.wire import WIRE_TARGETS  # noqa: PLC0415 # conversations that are ready

    tail = b"HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    requests = {
        "Embed": b"POST /runed.v1.RunedService/Embed " + tail,
        "OpenAI": b"POST /v1/embeddings " + tail,
    }
    silent = []
    for name, request in requests.items():
        body = json.dumps({"text" if name == "Embed" else "input": f"half closed {time.monotonic()}"}).encode()
        if b"200 " not in _half_closed(arena.daemon.socket, request % (len(body), body))[:20]:
            silent.append(name)
    for name, index in (("gRPC", 0), ("gRPC stream", 2)):
        answer = _half_closed(arena.daemon.socket, WIRE_TARGETS["http2"].seeds()[index])
        if answer.count(b"grpc-status") + answer.count(b"\x9a\xca\xc8\xb2") < 2 and len(answer) < 400:
            silent.append(name)
    return Measured(f"no answer: {', '.join(silent) or 'none'}", not silent)
