"""`runed ensure`: with `--wait`, embeddings are answered when it ends; with `--warm`, the engine is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bootstrap.parts import Release, archive
from tests.bootstrap.site import running_site
from tests.cli.support import Cli
from tests.support import http_over, wait_until


@pytest.fixture
def fresh(home: Path, llama_server: Path, tiny_qwen3: Path) -> Iterator[Cli]:
    """An empty home, and a site to download from."""
    with running_site() as site:
        program = f'#!/bin/sh\nexec {llama_server} "$@"\n'
        Release(site, engine=archive(("llama-b1/llama-server", program)), models={"tiny": tiny_qwen3.read_bytes()}).publish()
        cli = Cli(home, {"RUNED_MANIFEST": f"{site.url}/manifest.json"})
        yield cli
        cli.stop()


def status(cli: Cli) -> str:
    document: dict[str, Any] = json.loads(cli.run("status", "--json").stdout)
    return str(document["status"])


def starts(cli: Cli) -> int:
    """Return how often the engine was started."""
    return cli.paths.daemon_log.read_text().count("llama-server ready")


def embed_at_once(cli: Cli) -> int:
    """Embed a text as curl would, once, and return the status of HTTP."""
    with http_over(cli.paths.socket) as http:
        answer = http.post("/runed.v1.RunedService/Embed", json={"text": f"text {time.monotonic()}"}, timeout=5.0)
    return answer.status_code


@pytest.mark.parametrize("option", ["--wait", "--warm"])
def test_after_a_wait_the_next_call_is_answered_although_all_had_to_be_downloaded(fresh: Cli, option: str) -> None:
    done = fresh.run("ensure", option)

    assert (done.returncode, done.stdout[:9]) == (0, "started: "), done.stderr
    assert embed_at_once(fresh) == 200


@pytest.mark.parametrize("option", [None, "--wait"])
def test_a_call_right_after_the_start_is_answered_if_nothing_has_to_be_downloaded(cli: Cli, option: str | None) -> None:
    for _ in range(3):
        assert cli.run("stop").returncode == 0
        assert cli.run("ensure", *([option] if option else [])).returncode == 0
        assert embed_at_once(cli) == 200


def test_a_wait_leaves_a_suspended_engine_alone_and_a_warm_one_wakes_it(cli: Cli) -> None:
    sleepy = cli.with_environment(RUNED_IDLE_TIMEOUT="1s")
    assert sleepy.run("ensure", "--wait").returncode == 0
    wait_until(lambda: status(sleepy) == "IDLE", what="the suspension")

    waited = sleepy.run("ensure", "--wait")
    assert (waited.returncode, waited.stderr) == (0, "")
    assert starts(sleepy) == 1

    warmed = sleepy.run("ensure", "--warm", "--json")
    assert (warmed.returncode, warmed.stderr) == (0, "runed: starting the engine\n")
    assert json.loads(warmed.stdout)["started"] is False
    assert starts(sleepy) == 2


def test_a_wait_for_what_cannot_be_had_fails_with_the_reason(cli: Cli) -> None:
    broken = cli.with_environment(RUNED_MODEL=str(cli.home / "missing.gguf"))

    done = broken.run("ensure", "--wait", "--json")

    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "BACKEND_UNAVAILABLE"
    assert "missing.gguf does not exist" in error["message"]
    assert broken.run("ensure").returncode == 0  # the daemon runs, to tell the reason
    assert broken.run("ensure", "--wait").stderr.count("missing.gguf") == 1


def test_a_wait_has_the_limit_that_the_user_gives_it(cli: Cli, llama_server: Path, tmp_path: Path) -> None:
    gate, program = tmp_path / "gate", tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\nexec {llama_server} "$@"\n')
    program.chmod(0o755)
    slow = cli.with_environment(RUNED_LLAMA_SERVER=str(program))
    assert slow.run("ensure").returncode == 0
    began = time.monotonic()

    done = slow.run("ensure", "--wait", "--timeout", "1")

    assert time.monotonic() - began < 30
    assert (done.returncode, done.stdout) == (1, "")
    *steps, last = done.stderr.splitlines()
    assert set(steps) <= {"runed: looking for engine and model"}  # on a busy machine, the time may be over before it is told
    assert last == "runed: embeddings are not answered after 1 s; the daemon goes on, and `runed status` shows how far it is"
    gate.touch()
    assert slow.run("ensure", "--wait").returncode == 0
    assert embed_at_once(slow) == 200


def test_one_wait_at_a_time(cli: Cli) -> None:
    done: subprocess.CompletedProcess[str] = cli.run("ensure", "--wait", "--warm")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_a_wait_for_a_stopped_daemon_tells_that_it_is_stopped_and_ends_at_its_limit(cli: Cli) -> None:
    assert cli.run("ensure", "--wait").returncode == 0
    pid = json.loads(cli.run("ensure", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = cli.run("ensure", "--wait", "--timeout", "1")
    finally:
        os.kill(pid, signal.SIGCONT)
    stopped, ended = done.stderr.splitlines()
    assert f"kill -CONT {pid}" in stopped
    assert ended.startswith("runed: embeddings are not answered after 1 s")
    assert (done.returncode, done.stdout) == (1, "")
