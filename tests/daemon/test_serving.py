"""One daemon serves a home. Others must not serve it, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest, EmbedBatchResponse

from runed.lifecycle.listener import probe
from runed.paths import Paths
from tests.support import GRPC_OPTIONS, RunningDaemon, clean_environment, process_gone, raw_stub, wait_until

StartDaemon = Callable[..., RunningDaemon]


def test_second_daemon_exits_0_and_names_the_first(qwen_daemon: RunningDaemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "runed"],
        env=clean_environment(RUNED_HOME=str(qwen_daemon.home)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 0
    assert f"pid {qwen_daemon.process.pid} already serves {qwen_daemon.socket}" in second.stderr
    assert qwen_daemon.health()["status"] == "STATUS_OK"


def test_socket_and_directories_are_private(qwen_daemon: RunningDaemon) -> None:
    assert stat.S_IMODE(qwen_daemon.socket.stat().st_mode) == 0o600
    for directory in [qwen_daemon.home, *(path for path in qwen_daemon.home.rglob("*") if path.is_dir())]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    for path in qwen_daemon.home.rglob("*"):
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077 or path == qwen_daemon.log_path, path


def test_record_tells_who_serves(qwen_daemon: RunningDaemon) -> None:
    record = json.loads((qwen_daemon.home / "daemon.json").read_text())
    assert record["pid"] == qwen_daemon.process.pid
    assert record["socket"] == str(qwen_daemon.socket)
    assert record["version"]


def test_engine_listens_on_no_tcp_port(qwen_daemon: RunningDaemon) -> None:
    engine = int(qwen_daemon.health()["enginePid"])
    targets = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{engine}/fd").iterdir()]
    inodes = {target.removeprefix("socket:[").rstrip("]") for target in targets if target.startswith("socket:")}
    assert inodes
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{engine}/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {line.split()[9] for line in lines}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_everything_and_removes_only_our_files(number: signal.Signals, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    bystander = daemon.home / "notes.txt"
    bystander.write_text("mine")
    assert daemon.stop(number) == 0
    assert process_gone(engine)
    assert not daemon.socket.exists()
    assert not (daemon.home / "daemon.json").exists()
    assert not (daemon.home / "run" / "engine.sock").exists()
    assert bystander.read_text() == "mine"


def test_shutdown_lets_what_is_in_flight_finish(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    texts = [f"text number {number} of a long call" for number in range(600)]
    with ThreadPoolExecutor() as pool:
        call = pool.submit(daemon.call, "EmbedBatch", {"texts": texts}, timeout=60)
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        assert daemon.call("Shutdown", {"graceSeconds": 60}) == {"accepted": True}
        assert len(call.result(60)["embeddings"]) == 600
    assert daemon.process.wait(30) == 0


def test_late_call_on_a_busy_connection_is_refused_so_that_it_can_be_tried_again(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=GRPC_OPTIONS) as channel:
        batch = EmbedBatchRequest(texts=[f"text {number} of a long call" for number in range(1000)]).SerializeToString()
        in_flight = raw_stub(channel, "/runed.v1.RunedService/EmbedBatch").future(batch, timeout=60)
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        daemon.call("Shutdown", {"graceSeconds": 60})
        with pytest.raises(grpc.RpcError) as caught:
            raw_stub(channel, "/runed.v1.RunedService/Embed")(b"\x0a\x01x", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(EmbedBatchResponse.FromString(in_flight.result()).embeddings) == 1000
    assert daemon.process.wait(30) == 0


def test_second_signal_does_not_wait_for_what_is_in_flight(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    texts = [f"text {number} of a call that nobody waits for " * 10 for number in range(2048)]
    with ThreadPoolExecutor() as pool:
        call = pool.submit(daemon.call, "EmbedBatch", {"texts": texts}, timeout=60)
        wait_until(lambda: daemon.health().get("inFlightRequests") == "1", what="the call in flight")
        daemon.call("Shutdown", {"graceSeconds": 300})
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(15) == 0
        assert call.exception(10) is not None or "code" in call.result()


def test_killed_daemon_takes_its_engine_along_and_the_next_one_cleans_up(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    daemon.process.kill()
    daemon.process.wait(10)
    assert daemon.socket.exists()
    wait_until(lambda: process_gone(engine), what="the engine's death")
    successor = start_daemon()
    successor.wait_for("STATUS_OK")
    assert len(successor.call("Embed", {"text": "hello"})["vector"]) == 64
    assert successor.stop() == 0


def test_stale_socket_and_record_are_cleaned(home: Path, start_daemon: StartDaemon) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "embedding.sock"))
    (home / "daemon.json").write_text('{"pid": 1, "start_time": 0, "version": "0", "socket": "x"}')
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    assert daemon.stop() == 0


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_foreign_path_is_refused_untouched(kind: str, home: Path, start_daemon: StartDaemon) -> None:
    path = home / "embedding.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        (path / "precious").mkdir(parents=True)
    else:
        path.symlink_to(home / "elsewhere")
    before = path.lstat().st_ino
    daemon = start_daemon()
    assert daemon.process.wait(30) == 1
    assert path.lstat().st_ino == before
    assert str(path) in daemon.log()
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_daemon_leaves_when_its_socket_is_no_longer_its_own(how: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    engine = int(daemon.wait_for("STATUS_OK")["enginePid"])
    daemon.socket.unlink()
    with socket.socket(socket.AF_UNIX) as thief:
        if how == "replaced":
            thief.bind(str(daemon.socket))
        assert daemon.process.wait(20) == 0
        assert daemon.socket.exists() == (how == "replaced")
    assert process_gone(engine)


def test_home_with_a_long_path_is_served_through_the_alias(tmp_path: Path, llama_server: Path, tiny_qwen3: Path) -> None:
    long_home = tmp_path / ("deep-" * 20) / "home"
    long_home.mkdir(mode=0o700, parents=True)
    daemon = RunningDaemon(long_home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(tiny_qwen3)})
    try:
        alias = Paths(long_home).socket
        assert alias.parent == Path(f"/tmp/runed-{os.getuid()}")
        assert len(str(alias)) < 104
        wait_until(lambda: probe(alias), what="the daemon")
        assert json.loads((long_home / "daemon.json").read_text())["socket"] == str(alias)
        assert daemon.stop() == 0, daemon.log()
        assert not alias.exists()
    finally:
        daemon.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_the_midst_of_binding_leaves_nothing_behind(home: Path, number: int) -> None:
    code = f"""
import os, runed.cli.main, runed.daemon.run
bind = runed.daemon.run.Listener.bind
def interrupted(path):
    listener = bind(path)
    os.kill(os.getpid(), {int(number)})
    return listener
runed.daemon.run.Listener.bind = interrupted
runed.cli.main.main(["serve"])
"""
    subprocess.run([sys.executable, "-c", code], env=clean_environment(RUNED_HOME=str(home)), check=True, timeout=20)
    assert not (home / "embedding.sock").exists()
    assert not (home / "daemon.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_signal_before_the_event_loop_listens_to_it_leaves_nothing_behind(home: Path, number: int) -> None:
    slow = (
        "import time, runed.daemon.assembly as d, runed.cli.main as m; "
        "d.build_app = lambda host: time.sleep(30); m.main(['serve'])"
    )
    starting = subprocess.Popen([sys.executable, "-c", slow], env=clean_environment(RUNED_HOME=str(home)))
    wait_until((home / "embedding.sock").exists, what="the socket")
    starting.send_signal(number)
    assert starting.wait(20) == 0
    assert not (home / "embedding.sock").exists()
    assert not (home / "daemon.json").exists()
