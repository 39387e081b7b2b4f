"""Attacks on what belongs to others: homes, sockets, directories, processes, state files, texts in logs and cores."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

import runed
from runed.processes import identify
from tests.hostile.arena import NOBODY, RUNED, Arena, Measured, attack, is_bug, said
from tests.support import process_gone


def _own(path: Path, user: int) -> None:
    """Give a directory and everything in it to a user."""
    for entry in (path, *path.rglob("*")):
        os.chown(entry, user, user, follow_symlinks=False)


@attack("1", "a home of another user names a program", "no command runs it or reads a config of it", root=True)
def foreign_home(arena: Arena) -> Measured:
    home, ran = arena.new(), arena.folder / "ran"
    home.mkdir(mode=0o755)
    program = arena.folder / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {ran}\n")
    program.chmod(0o755)
    (home / "config.json").write_text(json.dumps({"version": 1, "runed_binary": str(program), "llama_server": str(program)}))
    _own(home, NOBODY)
    commands = (["ensure"], ["embed", "a secret"], ["status"], ["stop"], ["serve"], ["install"])
    codes = [arena.run(home, *command).returncode for command in commands]
    with suppress(runed.errors.RunedError):
        runed.connect(home=home, timeout=10).close()
    refused = sum(code not in {0, 124} for code in codes)
    text = f"{refused} of {len(codes)} commands refused, the program {'ran' if ran.exists() else 'did not run'}"
    return Measured(text, not ran.exists() and refused == len(codes))


@attack("1", "daemon.json of a foreign home names our process, then `runed stop`", "the process lives", root=True)
def foreign_record(arena: Arena) -> Measured:
    home = arena.new()
    home.mkdir(mode=0o755)
    with arena.bystander() as bystander:
        _write_record(home, bystander.pid)
        _own(home, NOBODY)
        result = arena.run(home, "stop")
        time.sleep(0.2)
        alive = bystander.poll() is None
    return Measured(f"it {'lives' if alive else 'was ended'}; {said(result)}", alive)


def _write_record(home: Path, pid: int, **changes: object) -> None:
    identity = identify(pid)
    assert identity is not None
    record = {"pid": pid, "start_time": identity.start_time, "version": "0.0.1", "socket": str(home / "embedding.sock")}
    (home / "daemon.json").write_text(json.dumps(record | changes))


@attack("2", "another user listens on our socket", "0 bytes of a text are sent", root=True)
def impostor(arena: Arena) -> Measured:
    home = arena.new()
    home.mkdir(mode=0o700)
    heard = bytearray()
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o777)\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY}); s.listen(16); print(flush=True)\n"
        "while True:\n"
        "    c, _ = s.accept(); c.settimeout(2)\n"
        "    try: sys.stdout.buffer.write(c.recv(65536)); sys.stdout.buffer.flush()\n"
        "    except OSError: pass\n"
        "    c.close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home / "embedding.sock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        reader = threading.Thread(target=lambda: heard.extend(process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        for command in (["embed", "the secret"], ["status"], ["stop"]):
            arena.run(home, *command, timeout=20)
        process.kill()
        reader.join()
    return Measured(f"{len(heard)} bytes were sent", not heard)


@attack("2", "another user connects to our daemon, whose directory was opened", "403, or no answer", root=True)
def foreign_client(arena: Arena) -> Measured:
    daemon = arena.started()
    daemon.home.chmod(0o711)
    arena.folder.chmod(0o711)
    daemon.socket.chmod(0o777)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1])\n"
        "s.sendall(b'POST /runed.v1.RunedService/Health HTTP/1.1\\r\\nHost: r\\r\\nContent-Type: application/json\\r\\n"
        "Content-Length: 2\\r\\n\\r\\n{}')\n"
        "print(s.recv(65536).partition(b'\\r')[0].decode())\n"
    )
    told = subprocess.run(
        ["/usr/bin/env", "python3", "-c", code, str(daemon.socket)],
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if told.returncode and "Error" not in told.stderr:
        return Measured("no Python that other users can run", None)
    answer = told.stdout.strip() or "nothing"  # the daemon may close before the request is sent
    return Measured(f"the answer: {answer}", answer in {"nothing", "HTTP/1.1 403 Forbidden"})


@attack("3", "RUNED_HOME is a directory in use, open to others", "refused, mode and content as before")
def shared_directory(arena: Arena) -> Measured:
    wrong, tried = [], 0
    for mode in (0o755, 0o775, 0o777, 0o1777):
        home = arena.new()
        home.mkdir()
        (home / "letter.txt").write_text("mine")
        home.chmod(mode)
        tried += 1
        result = arena.run(home, "ensure")
        arena.run(home, "stop")
        if result.returncode == 0 or stat.S_IMODE(home.stat().st_mode) != mode or len(list(home.iterdir())) != 1:
            wrong.append(f"{mode:o}")
    return Measured(
        f"{tried - len(wrong)} of {tried} left alone" + (f", but not {', '.join(wrong)}" if wrong else ""), not wrong
    )


@attack("3", "models, cache and logs are links to a team's directory", "its mode stays", slow=True)
def linked_directories(arena: Arena) -> Measured:
    wrong = []
    for name in ("models", "cache", "logs", "run", "bin"):
        home, team = arena.new(), arena.folder / f"team-{name}"
        home.mkdir(mode=0o700)
        team.mkdir()
        team.chmod(0o2775)
        (home / name).symlink_to(team)
        arena.run(home, "embed", "a text")
        arena.run(home, "stop")
        if stat.S_IMODE(team.stat().st_mode) != 0o2775:
            wrong.append(name)
    return Measured(f"changed: {', '.join(wrong) or 'none'}", not wrong)


@attack(
    "4", "the first caller has nice 10, one core, few files, cores, and blocks SIGTERM", "none is inherited, or `status` tells"
)
def inherited(arena: Arena) -> Measured:
    home = arena.new()
    cores = len(os.sched_getaffinity(0))

    def inherit() -> None:
        os.nice(10)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    started = arena.run(home, "ensure", "--json", preexec_fn=inherit)
    arena.run(home, "embed", "a text")
    pid = json.loads(started.stdout)["pid"]
    found = []
    for process in (psutil.Process(pid), *psutil.Process(pid).children()):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        blocked = int(status["SigBlk"], 16)
        found += [
            name for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)) if blocked >> number - 1 & 1
        ]
        found += ["affinity"] * (len(process.cpu_affinity()) < cores)
        found += ["core size"] * (process.rlimit(psutil.RLIMIT_CORE)[0] != 0)
    soft, hard = psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)
    found += ["open files"] * (soft < min(hard, 1024))
    if psutil.Process(pid).nice() == 10 and "nice" not in arena.run(home, "status").stdout:
        found.append("nice, untold")
    return Measured(f"inherited: {', '.join(found) or 'nothing'}", not found)


_DAMAGES = {
    "no UTF-8": b'{"version": 1, "pid": "\xff\xfe"}',
    "nested 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "objects nested deep": b'{"a":' * 10_000,
    "empty": b"",
    "null": b"null",
    "odd numbers": b'{"version": 1, "pid": -1, "start_time": 1e999}',
    "huge numbers": b'{"version": 1, "pid": 99999999999999999999, "start_time": 1}',
    "zeros": bytes(5000),
}

_STATE = (
    "daemon.json",
    "installed.json",
    "cache/verified.json",
    "run/engine.json",
    "cache/engine-quirks.json",
    "cache/tuning.json",
    "cache/device-choice.json",
)


@attack(
    "5",
    f"{len(_DAMAGES)} damages of {len(_STATE)} state files each",
    "each counts as missing: a text gets its vector",
    slow=True,
)
def damaged_state(arena: Arena) -> Measured:
    failed = []
    home = arena.new()
    for name, damage in _DAMAGES.items():
        arena.run(home, "stop")
        for path in _STATE:
            (home / path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            (home / path).write_bytes(damage)
        home.chmod(0o700)
        results = [arena.run(home, "status"), arena.run(home, "embed", "a text")]
        if results[1].returncode or any(map(is_bug, results)):
            failed.append(f"{name} ({said(results[1])})")
    arena.run(home, "stop")
    return Measured("; ".join(failed) or "all work", not failed)


@attack("5", "the centroid set is cut to nothing while it is in use", "the daemon lives and answers")
def cut_centroids(arena: Arena) -> Measured:
    daemon = arena.started()
    with runed.connect(socket_path=daemon.socket) as client:
        client.set_centroids([[1.0] + [0.0] * 63, [0.0, 1.0] + [0.0] * 62] * 2000)
        os.truncate(daemon.home / "cache" / "centroids.bin", 0)
        outcome = "it answers"
        try:
            client.embed_items(["a text", "another"], with_route=True, timeout=10)
        except runed.errors.RunedError as error:
            outcome = f"refused with {error.reason}"
    time.sleep(0.2)
    code = daemon.process.poll()
    return Measured(outcome if code is None else f"the daemon ended with code {code}", code is None)


@attack("5", "a model's name holds escape sequences", "none reaches the terminal")
def escapes(arena: Arena) -> Measured:
    from tests.backends.support import QWEN3, build_gguf  # noqa: PLC0415 # the parts of another room's tests

    engine = arena.fake_engine()
    outputs: list[subprocess.CompletedProcess[str]] = []
    names = {"general.name": "\x1b]0;owned\x07\x1b[2J\x9b31m"}
    for values in (QWEN3 | names, QWEN3 | names | {"general.architecture": "\x1b[31m"}):
        home, model = arena.new(), arena.folder / "m\x1b[31m.gguf"
        model.write_bytes(build_gguf(values))
        settings = {"RUNED_MODEL": str(model), "RUNED_LLAMA_SERVER": str(engine.executable)}
        outputs += [arena.run(home, *command, extra=settings) for command in (["embed", "a"], ["status"], ["ensure"])]
        arena.run(home, "stop")
    found = sum(bool({"\x1b", "\x9b"} & {*result.stdout, *result.stderr}) for result in outputs)
    return Measured(f"in {found} of {len(outputs)} outputs", not found)


@attack("6", "2,000 refused requests in a few seconds", "at most 20 lines of log for them, and no text of a user")
def flooded_log(arena: Arena) -> Measured:
    daemon = arena.started()
    before = len(daemon.log_lines())
    began = time.monotonic()
    with daemon.http() as http:
        for _ in range(500):
            http.post(
                "/runed.v1.RunedService/Embed", content=b'{"text": "the secret', headers={"content-type": "application/json"}
            )
            http.post("/nowhere", content=b"the secret")
            http.post("/v1/embeddings", content=b'{"input": 3}', headers={"content-type": "application/json"})
            http.post("/runed.v1.RunedService/Embed", content=b'{"text": ""}', headers={"content-type": "application/json"})
    seconds = time.monotonic() - began
    lines = len(daemon.log_lines()) - before
    leaked = "the secret" in daemon.log()
    most = 20 + int(10 * seconds)
    return Measured(f"{lines} lines in {seconds:.1f} s, {'a' if leaked else 'no'} text", lines <= most and not leaked)


@attack("6", "daemon and engine may dump core", "their limit is 0")
def cores(arena: Arena) -> Measured:
    home = arena.new()
    started = arena.run(home, "ensure", "--json", preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2))  # fmt: skip
    arena.run(home, "embed", "a text")
    daemon = psutil.Process(json.loads(started.stdout)["pid"])
    limits = [process.rlimit(psutil.RLIMIT_CORE)[0] for process in (daemon, *daemon.children())]
    arena.run(home, "stop")
    return Measured(f"limits: {limits}", set(limits) == {0})


@attack("18", "daemon.json names a stranger as an older daemon; then stop, embed, stop", "the stranger lives")
def forged_record(arena: Arena) -> Measured:
    home = arena.new()
    outcomes = []
    for _ in range(2):
        with arena.bystander() as bystander:
            home.mkdir(mode=0o700, exist_ok=True)
            for command in (["stop", "--grace", "1"], ["embed", "a text"], ["status"]):
                if bystander.poll() is None:
                    _write_record(home, bystander.pid)
                arena.run(home, *command)
            time.sleep(0.2)
            outcomes.append(bystander.poll() is None)
    arena.run(home, "stop")
    return Measured("it lives" if all(outcomes) else "it was ended", all(outcomes))


@attack("18", "run/engine.json names a stranger, and the daemon starts", "the stranger lives")
def forged_engine_record(arena: Arena) -> Measured:
    home = arena.new()
    (home / "run").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    with arena.bystander() as bystander:
        identity = identify(bystander.pid)
        assert identity is not None
        (home / "run" / "engine.json").write_text(json.dumps({"pid": identity.pid, "start_time": identity.start_time}))
        result = arena.run(home, "embed", "a text")
        alive = not process_gone(bystander.pid)
    arena.run(home, "stop")
    return Measured(f"it {'lives' if alive else 'was ended'}", alive and not is_bug(result))


@attack("18", "the daemon is frozen, and daemon.json names pid 1", "no advice to kill pid 1", slow=True)
def advice(arena: Arena) -> Measured:
    daemon = arena.started()
    _write_record(daemon.home, 1)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        results = [arena.run(daemon.home, *command, timeout=30) for command in (["stop", "--grace", "1"], ["status"])]
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    advised = any(f"kill {flag}1\n" in f"{result.stderr}\n".replace("`", "\n") for result in results for flag in ("-9 ", ""))
    return Measured(f"`stop`: {said(results[0])}", not advised)


@attack("18", "a process with our socket open is not the daemon", "`stop` ends the daemon alone")
def neighbours(arena: Arena) -> Measured:
    daemon = arena.started()
    with arena.bystander() as bystander, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        (daemon.home / "daemon.json").unlink()
        result = subprocess.run(
            [RUNED, "stop"], env=daemon.environment, capture_output=True, text=True, timeout=60, check=False
        )
        ended = daemon.process.poll() is not None or process_gone(daemon.process.pid)
        alive = bystander.poll() is None
    return Measured(f"exit code {result.returncode}, the daemon {'ended' if ended else 'runs on'}", ended and alive)
