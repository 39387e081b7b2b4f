"""Programs in three languages that all start at once find or start the same daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conformance.drivers import PROTOCOLS, Drivers
from tests.conformance.table import violations
from tests.support import Golden, clean_environment, process_gone, short_home, wait_until

EACH = 8
RUNED = Path(sys.executable).with_name("runed")


@pytest.fixture
def environment(llama_server: Path, tiny_qwen3: Path) -> Iterator[dict[str, str]]:
    """The settings of programs that share an empty home. The daemon that they start is stopped at the end."""
    home = short_home()
    env = clean_environment(
        RUNED_HOME=str(home),
        RUNED_LLAMA_SERVER=str(llama_server),
        RUNED_MODEL=str(tiny_qwen3),
        PATH=f"{RUNED.parent}{os.pathsep}{os.environ['PATH']}",  # where the clients look for `runed`
    )
    yield env
    subprocess.run([RUNED, "stop"], env=env, capture_output=True, check=False)
    shutil.rmtree(home)


@pytest.mark.slow
def test_24_processes_on_an_empty_home_start_one_daemon_and_one_engine(
    drivers: Drivers, environment: dict[str, str], tiny_golden: Golden, tmp_path: Path
) -> None:
    commands = [drivers.command(language, "connect", None) for language in PROTOCOLS]
    lines = [{"id": "embed", "call": "embed", "args": {"text": tiny_golden.texts[1]}}, {"id": "health", "call": "health"}]
    calls = tmp_path / "calls"
    calls.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    outputs = _run_together(commands * EACH, calls, environment)
    assert len(outputs) == 3 * EACH
    pids = set()
    for output in outputs:
        answers = {answer["id"]: answer for answer in map(json.loads, output.splitlines())}
        assert not list(violations({"result": {"vector": {"$golden": 1}}}, answers["embed"], tiny_golden, answers))
        health = answers["health"]["result"]
        assert not health.get("engine_restarts")
        pids.add((health["pid"], health["engine_pid"]))
    [(daemon, engine)] = pids
    assert [child.pid for child in psutil.Process(daemon).children()] == [engine]
    assert _processes_of(environment["RUNED_HOME"]) == [daemon]
    subprocess.run([RUNED, "stop"], env=environment, capture_output=True, check=True)
    wait_until(lambda: process_gone(daemon) and process_gone(engine), what="the end of the daemon and its engine")


def _run_together(commands: list[list[str]], calls: Path, env: dict[str, str]) -> list[str]:
    """Start all commands at once, and return the output of each."""
    running: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            with calls.open() as lines:
                running.append(
                    subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
                )
        outputs = []
        for process in running:
            output, errors = process.communicate(timeout=100)
            assert process.returncode == 0, f"{process.args!r}: {errors[-4000:]}"
            outputs.append(output)
        return outputs
    finally:
        for process in running:
            process.kill()


def _processes_of(home: str) -> list[int]:
    """Return the processes that were started with a home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUNED_HOME") == home:
                found.append(process.pid)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
