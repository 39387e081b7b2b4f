"""The engine's memory is freed when nobody embeds, and the next text starts the engine again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from runed.processes import resident_bytes
from tests.support import RunningDaemon, process_gone, wait_until

StartDaemon = Callable[..., RunningDaemon]


def test_suspends_after_the_last_embedding_and_wakes_once_for_many(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="700ms")
    first = int(daemon.wait_for("STATUS_OK")["enginePid"])
    before = daemon.call("Embed", {"text": "hello world"})["vector"]
    idle = daemon.wait_for("STATUS_IDLE")
    assert idle.get("enginePid", "0") == "0"
    assert process_gone(first)
    assert resident_bytes(daemon.process.pid) <= 85 * 2**20
    assert daemon.call("Embed", {"text": "hello world"})["vector"] == before
    assert daemon.health()["status"] == "STATUS_IDLE", "a text that is in the cache wakes nobody"
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: daemon.call("Embed", {"text": f"hello {number // 2}"}), range(16)))
    assert all(one["vector"] == other["vector"] for one, other in zip(answers[::2], answers[1::2], strict=True))
    health = daemon.health()
    assert health.get("engineRestarts", "0") == "0"
    starts = [line for line in daemon.log_lines() if line["message"] == "llama-server ready"]
    assert len(starts) == 2
    assert daemon.stop() == 0


def test_health_and_info_neither_wake_nor_keep_awake(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="500ms")
    daemon.wait_for("STATUS_OK")

    def ask() -> bool:
        daemon.call("Info")
        return bool(daemon.health()["status"] == "STATUS_IDLE")

    wait_until(ask, timeout=10, what="idleness in spite of Health and Info")
    for _ in range(5):
        assert daemon.call("Info")["vectorDim"] == 64
        assert daemon.health()["status"] == "STATUS_IDLE"


def test_a_warm_up_wakes_and_counts_for_the_idle_time(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="700ms")
    daemon.wait_for("STATUS_IDLE")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: daemon.call("WarmUp"), range(4))) == [{}] * 4
    health = daemon.health()
    assert (health["status"], health.get("totalRequests", "0")) == ("STATUS_OK", "0")
    assert int(health["enginePid"]) > 0
    daemon.wait_for("STATUS_IDLE")
    starts = [line for line in daemon.log_lines() if line["message"] == "llama-server ready"]
    assert len(starts) == 2


def test_never_suspends_with_a_call_in_flight(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="50ms")
    daemon.wait_for("STATUS_IDLE")
    answer = daemon.call("EmbedBatch", {"texts": [f"text {number} takes its time " * 5 for number in range(150)]}, timeout=60)
    assert len(answer["embeddings"]) == 150
    daemon.wait_for("STATUS_IDLE")
    starts = [line for line in daemon.log_lines() if line["message"] == "llama-server ready"]
    assert len(starts) == 2


def test_who_keeps_nothing_on_disk_loads_no_database() -> None:
    program = "import sys, runed.daemon.run; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_engine_can_start_before_the_packages_of_servers_and_clients_are_imported() -> None:
    heavy = {"connectrpc", "google.protobuf", "h2", "numpy", "prometheus_client", "starlette"}
    program = f"import sys, runed.daemon.run; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_zero_never_suspends(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="0")
    engine = daemon.wait_for("STATUS_OK")["enginePid"]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(daemon.call, "Embed", {"text": "x"}).result()
    time.sleep(1)  # an engine that is suspended after 0 seconds is gone by then
    health = daemon.health()
    assert (health["status"], health["enginePid"]) == ("STATUS_OK", engine)
