"""The disk cache of the real daemon: vectors outlive the daemon's death, statistics count them, and no text is in the file."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

import runed
from tests.support import RunningDaemon, wait_until

StartDaemon = Callable[..., RunningDaemon]

TEXTS = ["a secret about the harbour", "a secret about the night train", "a secret about green tea"]


def embeddings(client: runed.Client) -> list[runed.Embedding]:
    return [item for item in client.embed_items(TEXTS) if isinstance(item, runed.Embedding)]


def test_vectors_outlive_a_killed_daemon_and_another_model(start_daemon: StartDaemon, home: Path, minilm: Path) -> None:
    daemon = start_daemon(RUNED_CACHE="disk")
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        empty = client.health().disk_cache_bytes
        assert empty > 0, "the file is there from the beginning"
        first = embeddings(client)
        wait_until(lambda: client.health().disk_cache_bytes > empty, what="the writing of the vectors")
        with daemon.http() as http:
            assert f"runed_disk_cache_bytes {float(client.health().disk_cache_bytes)}\n" in http.get("/metrics").text
    daemon.stop(signal.SIGKILL)
    for path in (home / "cache").rglob("*"):
        assert not path.is_file() or b"secret about" not in path.read_bytes()

    daemon = start_daemon(RUNED_CACHE="disk")
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        again = embeddings(client)
        assert all(item.cached for item in again)
        assert np.array_equal([item.vector for item in first], [item.vector for item in again])
        health = client.health()
        assert (health.cache_hits, health.total_batches) == (3, 0)
    assert daemon.stop() == 0

    daemon = start_daemon(RUNED_CACHE="disk", RUNED_MODEL=str(minilm))
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        assert not any(item.cached for item in embeddings(client))
    assert daemon.stop() == 0

    daemon = start_daemon(RUNED_CACHE="disk")
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        assert all(item.cached for item in embeddings(client))
    assert daemon.stop() == 0


def test_there_is_none_without_being_asked_for(start_daemon: StartDaemon, home: Path) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        embeddings(client)
        assert client.health().disk_cache_bytes == 0
    assert daemon.stop() == 0
    assert not list(home.rglob("*.sqlite*"))
