"""A daemon of Alice serves, and Mallory tries to get something of it. Each try must bring him nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import runed
from runed.errors import ForeignPathError
from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from runed.processes import is_alive
from tests.support import http_over, short_home
from tests.users import needs_root, run_as

pytestmark = [needs_root, pytest.mark.slow]

ALICE, MALLORY = 41_003, 41_004

SECRET = "Alice's secret text"

COMMANDS = "import sys, runed.cli.main\nfor line in sys.argv[1:]: assert runed.cli.main.main(line.split('|')) == 0, line"

TRIES = {
    "to list the home": "os.listdir(home)",
    "to read the record": "read(home + '/daemon.json')",
    "to read the token": "read(home + '/http.token')",
    "to read the secret of the cache": "read(home + '/cache.secret')",
    "to read the log": "read(home + '/logs/daemon.log')",
    "to read the vectors": "read(home + '/cache/vectors.sqlite')",
    "to write into the home": "open(home + '/config.json', 'w')",
    "to remove the socket": "os.unlink(home + '/embedding.sock')",
    "to link to the token": "os.link(home + '/http.token', '/tmp/token-of-alice')",
    "to connect to the socket": "dial(home + '/embedding.sock')",
    "to connect to the engine": "dial(home + '/run/engine.sock')",
    "to embed by the client": "runed.connect(socket_path=home + '/embedding.sock').embed('x').size",
    "to embed by the home": "runed.connect(home=home, spawn=False).embed('x').size",
    "to stop it by the command": "main(['stop'])",
    "to end it by a signal": "os.kill(daemon, signal.SIGTERM)",
    "to end the engine by a signal": "os.kill(engine, signal.SIGKILL)",
    "to read its environment": "read(f'/proc/{daemon}/environ')",
    "to read its memory": "read(f'/proc/{daemon}/mem')",
    "to read its open files": "[read(f'/proc/{daemon}/fd/{n}') for n in os.listdir(f'/proc/{daemon}/fd')]",
    "to take a descriptor of it": "take_descriptor(daemon)",
    "to read the engine's memory": "read(f'/proc/{engine}/mem')",
    "to embed over the port": "post(port, '')",
    "to embed over the port with a guessed token": "post(port, 'runed')",
    "to find the text among the arguments": "found_in(f'/proc/{daemon}/cmdline', f'/proc/{engine}/cmdline')",
    "to find readable files that it left": "readable_files('/tmp', '/var/tmp', '/dev/shm')",
}
"""The code of each try, by its purpose. It brings something if it raises no error and has a true value."""

MALLORYS = """
import ctypes, http.client, json, os, signal, socket, sys
home, daemon, engine, port, alice, secret, tries = json.loads(sys.argv[1])

def read(path):
    with open(path, "rb") as file:
        return file.read(1)

def dial(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return True

def main(arguments):
    from runed.cli.main import main
    os.environ["RUNED_HOME"] = home
    return main(arguments) == 0

def take_descriptor(pid):
    return ctypes.CDLL(None).syscall(438, os.pidfd_open(pid), 0, 0) >= 0  # pidfd_getfd

def post(port, token):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": "application/json"} | ({"authorization": "Bearer " + token} if token else {})
    connection.request("POST", "/v1/embeddings", json.dumps({"model": "m", "input": secret}), headers)
    return connection.getresponse().status == 200

def found_in(*paths):
    return any(secret.encode() in open(path, "rb").read().replace(b"\\0", b" ") for path in paths)

def readable_files(*directories):
    found = []
    for directory in directories:
        for root, directories, names in os.walk(directory):
            for path in (os.path.join(root, name) for name in names):
                try:
                    if os.lstat(path).st_uid == alice and os.access(path, os.R_OK):
                        found.append(path)
                except OSError:
                    pass
    return found

result = {}
for name, code in tries.items():
    try:
        result[name] = repr(eval(code) or "")
    except (OSError, runed.RunedError) as error:
        result[name] = "''"
print("RESULT", json.dumps(result))
"""


@pytest.fixture(scope="module")
def home(llama_server: Path, tiny_qwen3: Path) -> Iterator[Path]:
    """The home of Alice, with a daemon that has embedded her secret, and a model that everybody may read."""
    place = short_home()
    place.chmod(0o755)
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, ALICE, ALICE)
    shutil.copy(tiny_qwen3, place / "model.gguf")
    _make_program(home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "RUNED_HOME": str(home),
        "RUNED_LLAMA_SERVER": str(llama_server),
        "RUNED_MODEL": str(place / "model.gguf"),
        "RUNED_HTTP": f"127.0.0.1:{port}",
        "RUNED_CACHE": "disk",
    }
    try:
        done = run_as(ALICE, COMMANDS, f"embed|{SECRET}", **settings)
        assert done.returncode == 0, done.stderr
        yield home
    finally:
        run_as(ALICE, COMMANDS, "stop", **settings)
        shutil.rmtree(place)


def _make_program(home: Path) -> None:
    """Let the Python that Alice can run be her `runed`."""
    done = run_as(ALICE, "import os, sys; print(sys.executable, os.environ['PYTHONPATH'])")
    python, places = done.stdout.split()
    program, config = home / "my-runed", home / "config.json"
    code = "import sys, runed.cli.main; sys.exit(runed.cli.main.main())"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={places} exec {python} -c '{code}' \"$@\"\n")
    program.chmod(0o700)
    config.write_text(json.dumps({"version": 1, "runed_binary": str(program)}))
    for path in (program, config):
        os.chown(path, ALICE, ALICE)


@pytest.fixture(scope="module")
def brought(home: Path) -> dict[str, str]:
    """What each try brought Mallory."""
    record = DaemonRecord.read(Paths(home).daemon_record)
    assert record is not None
    engine = json.loads(Paths(home).engine_record.read_text())["pid"]
    facts = [str(home), record.pid, engine, int(record.http.rpartition(":")[2]), ALICE, SECRET, TRIES]
    done = run_as(MALLORY, MALLORYS, json.dumps(facts))
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout.replace(json.dumps(SECRET), "")
    result: dict[str, str] = json.loads(done.stdout.rpartition("RESULT")[2])
    assert is_alive(record.process)
    os.kill(engine, 0)  # raises if the engine is gone
    return result


@pytest.mark.parametrize("purpose", TRIES)
def test_a_try(brought: dict[str, str], purpose: str) -> None:
    assert brought[purpose] == "''"


def test_the_tries_would_bring_something_to_alice(home: Path) -> None:
    record = DaemonRecord.read(Paths(home).daemon_record)
    assert record is not None
    harmless = {
        name: code for name, code in TRIES.items() if name.startswith(("to list", "to read the", "to embed by", "to conn"))
    }
    facts = [str(home), record.pid, record.pid, 0, ALICE, SECRET, harmless]
    done = run_as(ALICE, MALLORYS, json.dumps(facts))
    assert done.returncode == 0, done.stderr
    result: dict[str, str] = json.loads(done.stdout.rpartition("RESULT")[2])
    assert {name for name, value in result.items() if value == "''"} <= {"to read the engine's memory"}


def test_root_is_no_user_of_the_daemon(home: Path) -> None:
    with pytest.raises(ForeignPathError, match=f"user id {ALICE}"):
        runed.connect(socket_path=Paths(home).socket)
    with http_over(Paths(home).socket) as http:
        answer = http.post("/runed.v1.RunedService/Health", json={})
    assert answer.status_code == 403
    assert f"serves user id {ALICE} alone, and you are user id 0" in answer.text
