"""A daemon whose engine has a device that fails: the processors serve, and everybody is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.paths import Paths
from tests.backends.support import FakeEngine
from tests.support import RunningDaemon

DEVICE = "Vulkan0: fake device (2048 MiB, 2000 MiB free)"

StartDaemon = Callable[..., RunningDaemon]


@pytest.fixture
def start(fake: FakeEngine, start_daemon: StartDaemon) -> StartDaemon:
    return lambda: start_daemon(RUNED_LLAMA_SERVER=str(fake.executable), RUNED_ENGINE="vulkan")


@pytest.fixture
def fake(home: Path) -> FakeEngine:
    return FakeEngine(home / "engine")


def test_info_and_fingerprint_name_the_device(fake: FakeEngine, start: StartDaemon) -> None:
    fake.behave(devices=[DEVICE])
    daemon = start()
    assert daemon.wait_for("STATUS_OK").get("message", "") == ""
    info = daemon.call("Info")
    assert (info["accelerator"], info["device"]) == ("vulkan", "fake device")
    assert info["companyCosine"] == pytest.approx(1.0)
    daemon.stop()
    fake.behave(devices=[DEVICE.replace("fake", "another")])
    other = start()
    other.wait_for("STATUS_OK")
    assert other.call("Info")["fingerprint"] != info["fingerprint"]


@pytest.mark.parametrize("behaviour", [{"exit": "device lost"}, {"always": "nan"}])
def test_the_processors_serve_if_the_device_fails_at_the_start(
    fake: FakeEngine, start: StartDaemon, behaviour: dict[str, str]
) -> None:
    fake.behave(devices=[DEVICE], on_device=behaviour)
    daemon = start()
    health = daemon.wait_for("STATUS_OK")
    assert health["message"].startswith("the processors serve: vulkan failed before: llama-server ")
    assert "`runed install --reset`" in health["message"]
    assert len(daemon.call("Embed", {"text": "one"})["vector"]) == 64
    info = daemon.call("Info")
    assert (info["accelerator"], info.get("device", "")) == ("cpu", "")
    [failure] = json.loads(Paths(daemon.home).device_failures.read_text())
    assert failure["use"]["accelerator"] == "vulkan"
    assert [
        launch["argv"][launch["argv"].index("--device") + 1] for launch in fake.launches if "--device" in launch["argv"]
    ] == [
        "Vulkan0",
        "Vulkan0",
        "none",
    ]


def test_the_processors_serve_if_the_device_vanishes(fake: FakeEngine, start: StartDaemon) -> None:
    fake.behave(devices=[DEVICE])
    daemon = start()
    pid = int(daemon.wait_for("STATUS_OK")["enginePid"])
    before = daemon.call("Info")
    assert daemon.call("Embed", {"text": "one"})["fingerprint"] == before["fingerprint"]
    fake.behave(on_device={"exit": "invalid device: Vulkan0"})
    os.kill(pid, signal.SIGKILL)
    failed = daemon.wait_for("STATUS_IDLE")
    assert failed["message"] == "vulkan: fake device failed, so the next text is computed without it"
    answer = daemon.call("Embed", {"text": "two"})
    assert len(answer["vector"]) == 64
    after = daemon.call("Info")
    assert after["accelerator"] == "cpu"
    assert answer["fingerprint"] == after["fingerprint"] != before["fingerprint"]
    assert "invalid device: Vulkan0" in daemon.wait_for("STATUS_OK")["message"]
    assert "cached" not in daemon.call("Embed", {"text": "one"}), "the vector of the device is another one"


def test_a_device_that_is_named_is_tried_again_by_the_next_daemon(fake: FakeEngine, start: StartDaemon) -> None:
    fake.behave(devices=[DEVICE], on_device={"exit": "device lost"})
    first = start()
    first.wait_for("STATUS_OK")
    first.stop()
    fake.behave(devices=[DEVICE])
    second = start()
    second.wait_for("STATUS_OK")
    assert second.call("Info")["accelerator"] == "vulkan"


def test_a_device_that_is_not_there_is_told(fake: FakeEngine, start: StartDaemon) -> None:
    daemon = start()
    health = daemon.wait_for("STATUS_OK")
    assert health["message"].startswith("the processors serve: llama-server lists no vulkan device")
