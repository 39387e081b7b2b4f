"""The daemon of a node: the first worker starts it, no worker owns it, and an error names the node."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import runed
from runed.errors import LifecycleError, RunedError, SettingsError
from runed.jobs import nodes
from tests.cli.support import Cli
from tests.support import clean_environment


@pytest.fixture
def node(home: Path, llama_server: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.Node]:
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNED_LLAMA_SERVER", str(llama_server))
    monkeypatch.setenv("RUNED_MODEL", str(tiny_qwen3))
    yield nodes.Node(home=home)
    Cli(home).stop()


def test_workers_that_come_at_once_share_a_daemon_that_none_of_them_owns(node: nodes.Node, home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda _: node.prepare(), range(4)))
    assert len({info.fingerprint for info in infos}) == 1
    assert infos[0].vector_dim == 64
    daemon = Cli(home).daemon()
    assert daemon is not None
    assert daemon.pid not in {child.pid for child in psutil.Process().children()}
    with pickle.loads(pickle.dumps(node)).connect() as client:
        assert client.health().pid == daemon.pid


def test_daemon_outlives_a_worker_whose_children_are_killed(node: nodes.Node, home: Path) -> None:
    """As Ray does at the end of a worker."""
    program = textwrap.dedent(
        """
        import os, psutil, sys
        from runed.jobs.nodes import Node
        Node(home=sys.argv[1]).prepare()
        for child in psutil.Process().children():
            child.kill()
        os._exit(0)
        """
    )
    environment = clean_environment(**{name: value for name, value in os.environ.items() if name.startswith("RUNED_")})
    assert subprocess.run([sys.executable, "-c", program, str(home)], env=environment, check=False).returncode == 0
    with runed.connect(home=home, spawn=False) as client:
        assert client.embed("green tea").shape == (64,)


def test_missing_home_is_told_with_the_node_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LifecycleError) as raised:
        nodes.Node(home="/proc/nowhere").prepare()
    assert raised.value.message.startswith(f"node {socket.gethostname()}: ")
    assert "/proc/nowhere" in raised.value.message
    assert "set RUNED_HOME for them, or give `home`: a folder on a disk of the node" in raised.value.message
    monkeypatch.setenv("RUNED_IDLE_TIMEOUT", "soon")
    with pytest.raises(SettingsError, match=r"node .*RUNED_IDLE_TIMEOUT"):
        nodes.Node().prepare()


def test_model_that_cannot_be_fetched_ends_the_wait(
    home: Path, llama_server: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a node without a network."""
    monkeypatch.setenv("RUNED_LLAMA_SERVER", str(llama_server))
    monkeypatch.delenv("RUNED_MODEL", raising=False)
    monkeypatch.setenv("RUNED_MANIFEST", "http://127.0.0.1:9/manifest.json")
    with pytest.raises(RunedError, match=r"node .*127\.0\.0\.1:9"):
        nodes.Node(home=home, timeout=60).prepare()
    Cli(home).stop()


def test_unknown_model_is_told(node: nodes.Node) -> None:
    with pytest.raises(RunedError, match=r"node .*'nosuchmodel'"):
        nodes.Node(home=node.home, model="nosuchmodel").prepare()
