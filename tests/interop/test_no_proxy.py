"""Programs with a proxy in their environment reach the port by the value of NO_PROXY that docs/clients.md has."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runed.lifecycle.record import DaemonRecord
from tests.support import RunningDaemon, clean_environment, running_daemon

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"

DEAD_PROXY = "http://127.0.0.1:9"

PROGRAMS = {
    name: f"import os, {name}\n"
    f"answer = {name}.get(os.environ['OPENAI_BASE_URL'] + '/models', headers=dict(\n"
    "    Authorization='Bearer ' + os.environ['OPENAI_API_KEY']))\n"
    "print(answer.json()['object'])"
    for name in ("httpx", "httpx2")
} | {"openai": "import openai\nprint(openai.OpenAI(max_retries=0).models.list().object)"}

OVER_THE_SOCKET = """
import sys, httpx2
from openai import DefaultHttpxClient, OpenAI
client = DefaultHttpxClient(transport=httpx2.HTTPTransport(uds=sys.argv[1]))
print(OpenAI(base_url="http://localhost/v1", api_key="none", http_client=client, max_retries=0).models.list().object)
"""


@pytest.fixture(scope="module")
def daemon(llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    with running_daemon(llama_server, tiny_qwen3, RUNED_HTTP="127.0.0.1:0") as daemon:
        yield daemon


def ask(program: str, daemon: RunningDaemon, **variables: str) -> str:
    """Run a program that lists the models, behind a proxy that nobody serves. Return the last word of its output or error."""
    record = DaemonRecord.read(daemon.home / "daemon.json")
    assert record is not None
    token = (daemon.home / "http.token").read_text().strip()
    own = {"OPENAI_BASE_URL": f"{record.http}/v1", "OPENAI_API_KEY": token, "PYTHONWARNINGS": "ignore"}
    environment = {name: value for name, value in clean_environment(**own).items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(daemon.socket)],
        env=environment | {"HTTP_PROXY": DEAD_PROXY, "ALL_PROXY": DEAD_PROXY} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (done.stdout or done.stderr).split()[-1] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_loopback_is_named_in_no_proxy(program: str, daemon: RunningDaemon) -> None:
    [documented] = re.findall(r"^export NO_PROXY=(.*)$", PAGE.read_text(), re.MULTILINE)
    assert ask(PROGRAMS[program], daemon, NO_PROXY=documented) == "list"
    assert "refused" in ask(PROGRAMS[program], daemon)


def test_httpx_does_not_understand_a_network(daemon: RunningDaemon) -> None:
    assert "refused" in ask(PROGRAMS["httpx"], daemon, NO_PROXY="127.0.0.0/8")


def test_the_socket_needs_none(daemon: RunningDaemon) -> None:
    assert ask(OVER_THE_SOCKET, daemon) == "list"
