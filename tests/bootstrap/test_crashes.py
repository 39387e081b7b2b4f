"""Installations that are killed, interrupted, or run by several processes at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap.partial_files import partial_path
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, VERSION_SCRIPT, Release, archive
from tests.bootstrap.site import Exchange, serve, stall_after
from tests.support import clean_environment, process_gone, wait_until

SCRIPT = Path(__file__).with_name("run_install.py")


class Process:
    """One run of run_install.py. Its lines are read as they come."""

    def __init__(self, home: Path, manifest: str, *, file_limit: int = -1) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(home), manifest, str(file_limit)],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))

    def result(self) -> dict[str, Any]:
        """Wait for the end, and return the last line."""
        self.process.wait(60)
        self._reader.join(10)
        return self.lines[-1]

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Process]]:
    """Start processes that end with the test."""
    with ExitStack() as stack:

        def begin(manifest: str, **kwargs: int) -> Process:
            process = Process(home, manifest, **kwargs)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.mark.slow
async def test_a_download_killed_in_the_middle_goes_on_from_there(
    machine: Machine, release: Release, start: Callable[..., Process]
) -> None:
    url = release.publish()
    release.site.behaviours["/models/tiny.gguf"] = [stall_after(200_000)]
    process = start(url)
    partial = partial_path(machine.paths.model("tiny"))
    wait_until(lambda: partial.exists() and partial.stat().st_size == 200_000, what="the first part")
    process.kill()
    assert (await machine.install(url)).model.read_bytes() == MODEL
    assert [request.range for request in release.site.requests if request.path == "/models/tiny.gguf"] == ["", "bytes=200000-"]
    assert release.site.count("/engine.tar.gz") == 1
    assert machine.leftovers() == []


@pytest.mark.slow
async def test_ctrl_c_leaves_what_is_there_for_the_next_try(
    machine: Machine, release: Release, start: Callable[..., Process]
) -> None:
    url = release.publish()
    release.site.behaviours["/models/tiny.gguf"] = [stall_after(200_000)]
    process = start(url)
    partial = partial_path(machine.paths.model("tiny"))
    wait_until(lambda: partial.exists() and partial.stat().st_size == 200_000, what="the first part")
    process.process.send_signal(signal.SIGINT)
    process.process.wait(10)
    assert partial.stat().st_size == 200_000
    assert (await machine.install(url)).model.read_bytes() == MODEL
    assert release.site.requests[-1].range == "bytes=200000-"


@pytest.mark.slow
def test_four_processes_at_once_download_once_and_the_others_say_for_whom_they_wait(
    release: Release, start: Callable[..., Process]
) -> None:
    url = release.publish()
    gate = threading.Event()

    def hold(exchange: Exchange) -> None:
        gate.wait(60)
        serve(exchange)

    release.site.behaviours["/engine.tar.gz"] = [hold]
    processes = [start(url) for _ in range(4)]

    def waiting() -> list[str]:
        messages = [line.get("message", "") for process in processes for line in process.lines]
        return [message for message in messages if message.startswith("waiting for process ")]

    try:
        wait_until(lambda: len(waiting()) >= 3, timeout=60, what="three waiting processes")
    finally:
        gate.set()
    assert [set(process.result()) for process in processes] == [{"model"}] * 4
    assert release.site.count("/engine.tar.gz") == release.site.count("/models/tiny.gguf") == 1
    holders = {process.process.pid for process in processes}
    assert {int(message.removeprefix("waiting for process ").partition(",")[0]) for message in waiting()} <= holders


async def test_a_full_disk_is_told_and_what_is_there_is_kept(
    machine: Machine, release: Release, start: Callable[..., Process]
) -> None:
    url = release.publish()
    result = start(url, file_limit=100_000).result()
    assert "cannot write tiny.gguf: File too large" in result["error"]
    assert "make room" in result["error"]
    size = partial_path(machine.paths.model("tiny")).stat().st_size
    assert 0 < size <= 100_000
    assert (await machine.install(url)).model.read_bytes() == MODEL
    assert release.site.requests[-1].range == f"bytes={size}-"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_quantizer_dies_with_the_process_that_was_killed(
    machine: Machine, release: Release, start: Callable[..., Process], home: Path
) -> None:
    pid_file = home / "quantizer.pid"
    quantizer = f"#!/bin/sh\necho $$ > {pid_file}.new\nmv {pid_file}.new {pid_file}\nexec sleep 600\n"
    release.engine = archive(("llama-b1/llama-server", VERSION_SCRIPT), ("llama-b1/llama-quantize", quantizer))
    release.derived, release.default = {"derived": ("tiny", "Q6_K")}, "derived"
    process = start(release.publish())
    wait_until(pid_file.exists, what="the quantizer")
    process.kill()
    pid = int(pid_file.read_text())
    wait_until(lambda: process_gone(pid), what="the quantizer's end")


async def test_what_a_killed_extraction_left_is_cleaned_up(machine: Machine, release: Release) -> None:
    url = release.publish()
    installation = await machine.install(url)
    machine.paths.llama_cpp.rename(machine.paths.bin / ".llama-cpp.old")
    (machine.paths.bin / ".llama-cpp.new").mkdir()
    (machine.paths.models / "other.gguf.partial").write_bytes(b"x")
    assert (await machine.install(url)).llama_server == installation.llama_server
    assert release.site.count("/engine.tar.gz") == 1
    assert machine.leftovers() == []
