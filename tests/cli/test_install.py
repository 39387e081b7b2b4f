"""`runed install`: it fetches everything ahead of time, shows bars on a terminal, and makes a launcher that works
everywhere."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runed.bootstrap.device_failures import DeviceFailures, DeviceUse
from runed.version import __version__
from tests.cli.support import Cli, interrupt, press_ctrl_c
from tests.support import clean_environment, wait_until


@dataclass
class Origin:
    """The server that the model is downloaded from."""

    model: bytes
    url: str = ""
    requests: list[str] = field(default_factory=list)
    stall: threading.Event | None = None
    """An event. Until it is set, a download stops in the middle."""


@pytest.fixture
def origin(tiny_qwen3: Path) -> Iterator[Origin]:
    result = Origin(tiny_qwen3.read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            result.requests.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(result.model)))
            self.end_headers()
            half = len(result.model) // 2
            self.wfile.write(result.model[:half])
            if result.stall:
                result.stall.wait(60)
            self.wfile.write(result.model[half:])

        def log_message(self, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    result.url = f"http://127.0.0.1:{server.server_port}"
    yield result
    if result.stall:
        result.stall.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fresh(home: Path, llama_server: Path, origin: Origin, tmp_path: Path) -> Iterator[Cli]:
    """An empty home, an engine of the user's own, and a manifest with the model's URL."""
    manifest = tmp_path / "manifest.json"
    entry = {
        "url": f"{origin.url}/tiny.gguf",
        "size": len(origin.model),
        "sha256": hashlib.sha256(origin.model).hexdigest(),
    }
    manifest.write_text(json.dumps({"version": 1, "platforms": {}, "models": {"tiny": entry}, "default_model": "tiny"}))
    cli = Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MANIFEST": str(manifest)})
    yield cli
    cli.stop()


def test_install_fetches_all_and_the_daemon_then_needs_no_network(fresh: Cli, origin: Origin) -> None:
    done = fresh.run("install")
    assert done.returncode == 0, done.stderr
    model = fresh.paths.model("tiny")
    assert done.stdout.splitlines() == [
        f"engine    {fresh.environment['RUNED_LLAMA_SERVER']}",
        "device    the processors",
        f"model     {model}",
        f"launcher  {fresh.home / 'bin' / 'runed'}",
    ]
    assert "downloading tiny" in done.stderr
    assert model.read_bytes() == origin.model
    assert origin.requests == ["/tiny.gguf"]
    assert fresh.run("embed", "x").returncode == 0
    assert origin.requests == ["/tiny.gguf"]


def test_what_is_installed_is_for_its_user_alone(fresh: Cli) -> None:
    assert fresh.run("install").returncode == 0
    files = [path for path in fresh.home.rglob("*") if path.is_file()]
    assert fresh.home / "models" / "tiny.gguf" in files
    assert not [path for path in files if path.stat().st_mode & 0o077]


@pytest.mark.slow
def test_without_a_network_each_further_try_is_told(home: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        done = Cli(home, {"RUNED_MANIFEST": f"http://127.0.0.1:{closed.getsockname()[1]}/m.json"}).run("install")
    assert done.returncode == 1
    waits = [int(seconds) for seconds in re.findall(r"trying again in (\d+) s$", done.stderr, re.MULTILINE)]
    assert 2 <= len(waits) <= 5
    assert waits == sorted(set(waits))


def test_second_install_fetches_nothing(fresh: Cli, origin: Origin) -> None:
    first = fresh.run("install")
    second = fresh.run("install")
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert origin.requests == ["/tiny.gguf"]


def test_launcher_runs_this_runed_even_beside_a_folder_of_that_name(fresh: Cli, tmp_path: Path) -> None:
    assert fresh.run("install").returncode == 0
    launcher = fresh.home / "bin" / "runed"
    assert launcher.stat().st_mode & 0o777 == 0o700
    (tmp_path / "runed").mkdir()
    (tmp_path / "runed" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    environment = clean_environment(RUNED_HOME=str(fresh.home), PATH="/usr/bin:/bin")
    done = subprocess.run([launcher, "version"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"runed {__version__}\n", "")


def test_reset_forgets_the_devices_that_failed(fresh: Cli) -> None:
    use = DeviceUse("cuda", "build", "535", "model")
    fresh.paths.cache.mkdir(parents=True)
    DeviceFailures(fresh.paths.device_failures).remember(use, "device lost")
    assert fresh.run("install").returncode == 0
    assert DeviceFailures(fresh.paths.device_failures).reason(use) == "device lost"
    assert fresh.run("install", "--reset").returncode == 0
    assert DeviceFailures(fresh.paths.device_failures).reason(use) is None
    assert fresh.run("install", "--reset").returncode == 0


def test_bars_show_bytes_on_a_terminal(fresh: Cli) -> None:
    shown = fresh.run_on_terminal("install")
    assert shown.returncode == 0
    assert "downloading tiny" in shown.screen
    assert "kB" in shown.screen or "MB" in shown.screen
    assert shown.stdout.count(b"\n") == 4


def test_wrong_file_is_refused_in_one_line_and_nothing_is_installed(fresh: Cli, origin: Origin) -> None:
    origin.model = bytes(len(origin.model))
    done = fresh.run("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("runed: ")
    assert not fresh.paths.model("tiny").exists()
    assert not (fresh.home / "bin" / "runed").exists()


@pytest.mark.parametrize("on_terminal", [False, True])
def test_ctrl_c_ends_a_stalled_download_at_once_and_the_next_try_works(
    fresh: Cli, origin: Origin, *, on_terminal: bool
) -> None:
    origin.stall = threading.Event()
    if on_terminal:
        shown = fresh.run_on_terminal("install", interrupt_when=lambda: origin.requests)
        assert shown.returncode == 130
        assert "Traceback" not in shown.screen
        assert "runed: what was fetched is kept, and the same command goes on from there" in shown.screen
        hide_cursor, show_cursor = "\x1b[?25l", "\x1b[?25h"
        assert shown.screen.rfind(show_cursor) > shown.screen.rfind(hide_cursor)
    else:
        process = fresh.start("install")
        wait_until(lambda: origin.requests, what="the download")
        code, output, errors = interrupt(process)
        assert (code, output) == (130, "")
        assert "Traceback" not in errors
    assert not fresh.paths.model("tiny").exists()
    origin.stall.set()
    assert fresh.run("install").returncode == 0
    assert fresh.paths.model("tiny").read_bytes() == origin.model


def test_install_waits_for_a_daemon_that_installs_and_says_so(fresh: Cli, origin: Origin) -> None:
    origin.stall = threading.Event()
    assert fresh.run("ensure").returncode == 0
    wait_until(lambda: origin.requests, what="the daemon's download")
    daemon = fresh.daemon()
    assert daemon is not None
    process = fresh.start("install")
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert f"waiting for process {daemon.pid}" in line
    origin.stall.set()
    code = process.wait(30)
    output, _ = process.communicate()
    assert code == 0
    assert str(fresh.paths.model("tiny")).encode() in output
    assert len(origin.requests) == 1


def test_install_beside_a_daemon_that_downloads_shows_how_far_that_is(fresh: Cli, origin: Origin) -> None:
    stall = origin.stall = threading.Event()
    assert fresh.run("ensure").returncode == 0
    wait_until(lambda: origin.requests, what="the daemon's download")
    half, whole = len(origin.model) / 2e6, len(origin.model) / 1e6
    shown = fresh.run_on_terminal("install", once_shown=f"{half:,.1f}/{whole:,.1f} MB", then=lambda _: stall.set())
    assert shown.returncode == 0, shown.screen
    assert not fresh.paths.install_progress.exists()
    assert len(origin.requests) == 1


@pytest.mark.parametrize("command", [("install",), ("ensure", "--wait"), ("embed", "text")], ids=" ".join)
def test_ctrl_c_during_a_download_of_the_daemon_says_that_it_goes_on(
    fresh: Cli, origin: Origin, command: tuple[str, ...]
) -> None:
    origin.stall = threading.Event()
    assert fresh.run("ensure").returncode == 0
    wait_until(lambda: origin.requests, what="the daemon's download")
    shown = fresh.run_on_terminal(*command, once_shown=" MB", then=press_ctrl_c)
    assert shown.returncode == 130
    assert "runed: the daemon goes on with it; `runed status` shows how far it is, and `runed stop` ends it" in shown.screen
    assert "✓" not in shown.screen
    origin.stall.set()
    wait_until(fresh.paths.model("tiny").exists, what="the end of the download")


# Programs with a client

PROGRAM = """
import sys
import runed
with runed.connect({arguments}) as client:
    print(client.embed("text").shape[0])
"""


PROGRAM_OF_TASKS = """
import asyncio
import runed
async def main():
    async with await runed.connect_async() as client:
        await asyncio.gather(client.embed("one"), client.embed("two"))
asyncio.run(main())
"""


def program(home: Path, arguments: str = "", *, source: str = PROGRAM) -> str:
    path = home.with_name(f"{home.name}-program")
    path.write_text(f"#!{sys.executable}\n{source.format(arguments=arguments)}")
    path.chmod(0o700)
    return os.fspath(path)


def test_a_client_shows_a_download_that_its_call_waits_for(fresh: Cli, origin: Origin) -> None:
    stall = origin.stall = threading.Event()
    shown = fresh.run_on_terminal(program=program(fresh.home), once_shown=" 50%", then=lambda _: stall.set())
    assert (shown.returncode, shown.stdout) == (0, b"64\n"), shown.screen
    line = next(line for line in shown.screen.split("\r") if "50%" in line)
    assert re.match(r"runed: fetching the model \[=+ +\]  50%  \d+ of \d+ MB", line), line
    assert shown.screen.endswith("\r"), "the line is removed at the end"
    assert not re.search(r"\x1b", shown.screen), "neither colours nor movements"


@pytest.mark.parametrize("source", [PROGRAM, PROGRAM_OF_TASKS], ids=["threads", "asyncio"])
def test_ctrl_c_in_a_program_says_once_that_the_daemon_goes_on(fresh: Cli, origin: Origin, source: str) -> None:
    origin.stall = threading.Event()
    path = program(fresh.home, source=source)
    shown = fresh.run_on_terminal(program=path, once_shown=" 50%", then=press_ctrl_c)
    origin.stall.set()
    assert shown.returncode == -signal.SIGINT
    trace = shown.screen.rpartition("Traceback")[2]
    assert "KeyboardInterrupt" in trace
    assert shown.screen.count("runed: the daemon goes on with it; `runed status` shows how far it is") == 1
    wait_until(fresh.paths.model("tiny").exists, what="the end of the download")


@pytest.mark.parametrize(
    ("arguments", "setting"), [("progress=False", "yes"), ("", "0"), ("on_progress=lambda _: None", "yes")]
)
def test_a_client_shows_no_download_if_nobody_wants_it(fresh: Cli, origin: Origin, arguments: str, setting: str) -> None:
    shown = fresh.with_environment(RUNED_PROGRESS=setting).run_on_terminal(program=program(fresh.home, arguments))
    assert (shown.returncode, shown.screen, shown.stdout) == (0, "", b"64\n")


def test_a_client_in_a_pipe_shows_no_download(fresh: Cli, origin: Origin) -> None:
    done = fresh.run(program=program(fresh.home, "progress=True"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "64\n", "")


def test_a_client_in_a_notebook_shows_a_download_although_there_is_no_terminal(fresh: Cli, origin: Origin) -> None:
    """A module in the place of IPython tells that the program is the kernel of a notebook."""
    stall = origin.stall = threading.Event()
    path = program(fresh.home)
    kernel = "types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))"
    first, _, rest = Path(path).read_text().partition("\n")
    Path(path).write_text(f"{first}\nimport sys, types\nsys.modules['IPython'] = {kernel}\n{rest}")
    process = fresh.start(program=path)
    assert process.stderr is not None
    shown = b""
    while b"50%" not in shown:
        data = os.read(process.stderr.fileno(), 4096)
        assert data, shown
        shown += data
    stall.set()
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, b"64\n")
    assert b"\rruned: fetching the model [" in shown


def test_ctrl_c_in_a_program_that_waits_says_that_the_daemon_goes_on(fresh: Cli, origin: Origin) -> None:
    origin.stall = threading.Event()
    shown = fresh.run_on_terminal(program=program(fresh.home), once_shown=" 50%", then=press_ctrl_c)
    told = shown.screen.partition("Traceback")[0]
    assert "runed: the daemon goes on with it; `runed status`" in told
    assert shown.returncode != 0
    origin.stall.set()


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("RUNED_LLAMA_SERVER", "/nonexistent/llama-server", 2),
        ("RUNED_MODEL", "/nonexistent/model.gguf", 2),
        ("RUNED_MANIFEST", "/nonexistent/manifest.json", 1),
        ("RUNED_MODEL_VARIANT", "nonexistent", 1),
    ],
)
def test_what_cannot_be_installed_is_one_line(fresh: Cli, variable: str, value: str, code: int) -> None:
    done = fresh.with_environment(**{variable: value}).run("install")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("runed: ")
    assert done.stderr.count("\n") == 1
    assert value.rsplit("/", maxsplit=1)[-1] in done.stderr


def test_platform_without_an_engine_is_told(fresh: Cli) -> None:
    done = fresh.with_environment(RUNED_LLAMA_SERVER="").run("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert platform.system().lower() in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_first_call_that_waits_for_an_engine_says_so(fresh: Cli, tmp_path: Path) -> None:
    """The line is removed at the end. No later call has one."""
    patient = tmp_path / "patient"
    patient.write_text(f'#!/bin/sh\nsleep 3\nexec {fresh.environment["RUNED_LLAMA_SERVER"]} "$@"\n')
    patient.chmod(0o700)
    own = fresh.with_environment(RUNED_LLAMA_SERVER=str(patient), RUNED_ENGINE="cpu", RUNED_IDLE_TIMEOUT="1s")
    assert own.run("ensure", "--wait").returncode == 0
    wait_until(lambda: json.loads(own.run("status", "--json").stdout)["status"] == "IDLE", what="an engine that sleeps")
    shown = own.run_on_terminal(program=program(fresh.home))
    assert (shown.returncode, shown.stdout) == (0, b"64\n"), shown.screen
    assert shown.screen.split("\r")[1] == "runed: waiting for the engine, which starts or is busy"
    assert shown.screen.endswith("\r")
    silent = own.run_on_terminal(program=program(fresh.home, "progress=False"))
    assert (silent.screen, silent.stdout) == ("", b"64\n")
