"""The main job: without daemon, engine and model, a client asks for a vector, and the right one comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runed
from runed.client.types import Health, Phase, Status
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from tests.support import Golden, clean_environment, process_gone, wait_until
from tools import docroot

EMBED_IN_A_PROCESS = """
import json, sys, runed
with runed.connect() as client:
    vector = client.embed(sys.argv[1])
    health = client.health()
print(json.dumps({"daemon": health.pid, "engine": health.engine_pid, "vector": vector.tolist()}))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """A document root of the real engine and MiniLM."""
    path = tmp_path_factory.mktemp("root")
    docroot.build(path)
    return path


@pytest.fixture
def site(root: Path) -> Iterator[docroot.Site]:
    with docroot.serve(root) as site:
        yield site


@pytest.fixture
def empty_home(home: Path, site: docroot.Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home. Any client may start its daemon, which downloads from `site` and is stopped at the end."""
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNED_HOME", str(home))
    monkeypatch.setenv("RUNED_MANIFEST", f"{site.url}manifest.json")
    yield home
    stop_daemon(Paths(home), timeout=30)


def test_first_text_of_a_fresh_home_spawns_fetches_starts_and_embeds(empty_home: Path, minilm_golden: Golden) -> None:
    seen: list[Health] = []
    with runed.connect(on_progress=seen.append) as client:
        vectors = client.embed_batch(minilm_golden.texts)
        single = client.embed(minilm_golden.texts[0])
        info = client.info()
    assert minilm_golden.cosines(vectors).min() >= 0.9999
    assert np.allclose(single, vectors[0], atol=1e-5)
    assert {health.phase for health in seen} >= {Phase.FETCHING_MODEL}
    assert all(health.bytes_done <= health.bytes_total for health in seen)
    assert info.model_variant
    assert (empty_home / "models" / f"{info.model_variant}.gguf").exists()
    assert (empty_home / "installed.json").exists()
    assert list((empty_home / "licenses").iterdir())


def test_second_daemon_finds_everything_cached(empty_home: Path, site: docroot.Site) -> None:
    with runed.connect() as client:
        first = client.embed("hello")
        client.shutdown()
    record = DaemonRecord.read(Paths(empty_home).daemon_record)
    assert record is not None
    wait_until(lambda: process_gone(record.pid), what="the first daemon's end")
    downloads = [path for path in site.requested if "manifest" not in path]
    with runed.connect() as client:
        assert np.array_equal(client.embed("hello"), first)
    assert [path for path in site.requested if "manifest" not in path] == downloads


def test_sixteen_processes_at_once_get_one_daemon_one_engine_and_sixteen_vectors(empty_home: Path, site: docroot.Site) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EMBED_IN_A_PROCESS, f"text {number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(16)
    ]
    answers = []
    for process in processes:
        output, errors = process.communicate(timeout=110)
        assert process.returncode == 0, errors
        answers.append(json.loads(output))
    assert len({answer["daemon"] for answer in answers}) == 1
    assert len({answer["engine"] for answer in answers}) == 1
    assert len({tuple(answer["vector"]) for answer in answers}) == 16
    downloads = [path for path in site.requested if "manifest" not in path]
    assert len(downloads) == len(set(downloads)) == 2


def test_client_survives_the_killing_of_daemon_and_engine(empty_home: Path) -> None:
    with runed.connect() as client:
        before = client.embed("hello")
        first = client.health()
        os.kill(first.engine_pid, signal.SIGKILL)
        assert np.array_equal(client.embed("hello"), before)
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: process_gone(first.pid), what="the daemon's death")
        assert np.array_equal(client.embed("hello"), before)
        assert client.health().pid != first.pid


def test_bootstrap_that_fails_is_told_and_the_next_try_works(
    home: Path, site: docroot.Site, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = home / "manifest.json"
    monkeypatch.setenv("RUNED_HOME", str(home))
    monkeypatch.setenv("RUNED_MANIFEST", str(manifest))
    document = json.loads((root / "manifest.json").read_text())
    for platform in document["platforms"].values():
        platform["llama_server"]["url"] = f"{site.url}{platform['llama_server']['url']}"
    for model in document["models"].values():
        model["url"] = f"{site.url}{model['url']}"
    broken = json.loads(json.dumps(document))
    next(iter(broken["models"].values()))["sha256"] = "0" * 64
    manifest.write_text(json.dumps(broken))
    try:
        with runed.connect() as client:
            with pytest.raises(runed.errors.BackendError, match="SHA-256"):
                client.embed("hello")
            assert client.health().status is Status.DEGRADED
            manifest.write_text(json.dumps(document))

            def embedded() -> bool:
                try:
                    return client.embed("hello").shape == (384,)
                except runed.errors.BackendError:
                    return False

            assert wait_until(embedded, what="the recovery")
    finally:
        stop_daemon(Paths(home), timeout=30)


def test_foreground_daemon_is_found_by_a_client(empty_home: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-m", "runed"],
        env=clean_environment(**{k: v for k, v in os.environ.items() if k.startswith("RUNED_")}),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(Paths(empty_home).daemon_record.exists, what="the daemon")
        with runed.connect() as client:
            client.embed("hello")
            assert client.health().pid == daemon.pid
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0
