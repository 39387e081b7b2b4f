"""Each example in the help of a command does what it says. Those of `runed embed` are in `test_first_contact.py`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import pty
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runed.cli.main import COMMANDS
from tests.cli.support import SCRIPTS, Cli
from tests.cli.test_first_contact import examples_of
from tests.support import short_home

pytestmark = pytest.mark.slow

ENDLESS = {"runed top", "runed top --interval 5", "runed top --json", "runed logs -f", *examples_of("serve")}
"""Examples that end with Ctrl-C."""

ELSEWHERE = {
    "runed service install": "it needs a service manager: test_service.py",
    "runed service status --json": "as above",
    "runed service remove": "as above",
    "runed pull hf:owner/repository/model.Q8_0.gguf@main --name mine": "it needs a double of the hub: test_models.py",
    "runed bench": "it takes long: test_bench.py",
    "runed bench --tune && runed stop": "as above",
    "runed bench --variants": "as above",
    'eval "$(runed completion zsh)"': "it needs another shell: test_first_contact.py",
    "runed completion fish | source": "as above",
}
"""Examples that other tests run, and why."""

PREPARED = {
    **{name: ["runed embed tea > vector.json"] for name in ("status", "top", "open", "logs", "doctor")},
    "serve": ["runed stop"],
    "use": ["runed pull bge-m3", "runed add mine.gguf --name mine"],
    "rm": ["runed pull bge-m3", "runed use qwen3-embedding-0.6b"],
}
"""What precedes the examples of a command."""

CLEANED = {
    "stop": ["runed ensure --anyway"],
    "add": ["runed use qwen3-embedding-0.6b", "runed rm mine", "runed rm e5", "runed stop"],
    "use": ["runed use qwen3-embedding-0.6b", "runed rm mine"],
}
"""What follows the examples of a command, for those of others."""


class Folder:
    """A folder with the files that examples name, and a home whose manifest has the models that they name."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder = folder
        self.environment = cli.environment_of_a_command() | {
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "HOME": str(folder),
            "DISPLAY": "",
            "WAYLAND_DISPLAY": "",
            "BROWSER": "",
            "TERM": "xterm",
        }

    def run(self, command: str) -> None:
        """Run a command to its end, which must be a good one."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (command, done.returncode, done.stdout[-2000:], done.stderr[-2000:])

    def interrupt(self, command: str) -> None:
        """Run a command on a terminal, and press Ctrl-C once it has shown something or written its log."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}" if command.startswith("runed") else f"exec env {command}"],
            cwd=self.folder,
            env=self.environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        log, screen = self.folder / "daemon.log", b""
        with contextlib.suppress(OSError):  # Linux ends the reading with EIO
            if "2>" in command:
                while not (log.exists() and b'"serving"' in log.read_bytes()):
                    assert process.poll() is None, command
                    time.sleep(0.05)
            else:
                while len(screen) < 20 or ("serve" in command and b"serving" not in screen):
                    screen += os.read(controller, 65536)
            process.send_signal(signal.SIGINT)
            while os.read(controller, 65536):
                pass
        os.close(controller)
        assert process.wait(timeout=60) in {0, 130}, (command, screen)


@pytest.fixture(scope="module")
def folder(llama_server: Path, tiny_qwen3: Path, reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    place, home = tmp_path_factory.mktemp("examples"), short_home()
    for name in ("mine.gguf", "models/e5-base-v2.f16.gguf"):
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_qwen3, place / name)
    (place / "notes").mkdir()
    for name in ("passages.txt", "notes/tea.txt"):
        (place / name).write_text("green tea\na train to Basel\n")
    (place / "docs.jsonl").write_text('{"id": 1, "text": "tea"}\n')
    (place / "my_program.py").write_text("import runed\nwith runed.connect() as client:\n    client.embed('tea')\n")
    handler = functools.partial(_Quiet, directory=os.fspath(tiny_qwen3.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        entry = {
            "url": f"http://127.0.0.1:{server.server_port}/{tiny_qwen3.name}",
            "sha256": hashlib.sha256(tiny_qwen3.read_bytes()).hexdigest(),
        }
        names = ["qwen3-embedding-0.6b.f16", "bge-m3.q8_0"]
        manifest = {"version": 1, "platforms": {}, "models": dict.fromkeys(names, entry), "default_model": names[0]}
        (place / "manifest.json").write_text(json.dumps(manifest))
        models = {"ranker": {"path": str(reranker)}}
        (home / "config.json").write_text(json.dumps({"version": 1, "http": "127.0.0.1:0", "models": models}))
        cli = Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MANIFEST": str(place / "manifest.json")})
        yield Folder(place, cli)
        cli.stop()
        server.shutdown()
    shutil.rmtree(home)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "embed"])
def test_the_examples_of_a_command_run(folder: Folder, command: str) -> None:
    for preparation in PREPARED.get(command, []):
        folder.run(preparation)
    for example in examples_of(command):
        free_port = example.replace(":8321", ":0")
        if example in ENDLESS:
            folder.interrupt(free_port)
        elif example not in ELSEWHERE:
            folder.run(free_port)
    for step in CLEANED.get(command, []):
        folder.run(step)


def test_no_example_is_left_out_for_nothing() -> None:
    examples = {example for command in COMMANDS for example in examples_of(command)}
    assert ENDLESS | set(ELSEWHERE) <= examples
