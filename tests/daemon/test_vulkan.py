"""A real device that every machine can have: the software Vulkan of Mesa, with the engine of a prebuilt wheel."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runed.backends.gguf import check_model
from runed.bootstrap import DeviceChoice, install_for_comparison, keep_choice
from runed.paths import Paths
from runed.settings import Settings
from tests.support import Golden, RunningDaemon
from tools import prebuilt

START_SECONDS = 900.0
"""Seconds that the first start may take: the driver compiles each kernel when it is first used."""

TEXTS = 6

CHOSEN_AT = "2026-11-29T01:00:00+00:00"


@pytest.fixture(scope="session")
def vulkan_server() -> Path:
    """The engine of the wheel that `tools.prebuilt` installs where it is for the platform."""
    if why := prebuilt.objection(platform.system(), platform.machine(), platform.libc_ver()):
        pytest.skip(f"there is a prebuilt llama-server with Vulkan, but {why}")
    if not any(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")):
        pytest.skip("there is no software Vulkan; on Debian: apt-get install mesa-vulkan-drivers")
    programs = prebuilt.programs_folder()
    assert programs is not None, "the prebuilt llama-server is missing: run `python -m tools.prebuilt`"
    server = programs / "llama-server"
    why = prebuilt.try_out(server, prebuilt.MODEL)
    if "SIGILL" in why:
        pytest.skip(f"there is a prebuilt llama-server with Vulkan, but {why}: this processor is older than it was built for")
    assert not why
    return server


@pytest.fixture
def _vulkan_chosen(home: Path, vulkan_server: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the devices of this machine, and keep Vulkan as if it had been the fastest."""
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    settings = Settings(home, llama_server=vulkan_server, model=minilm, engine="vulkan")
    compared = asyncio.run(install_for_comparison(settings, Paths(home), report=lambda _: None, check_model=check_model))
    assert [each.device.accelerator for each in compared] == ["vulkan", "cpu"], compared[0].warnings
    best = compared[0]
    choice = DeviceChoice(model=best.model_sha256, compared=best.device_uses, chosen=best.device_use, chosen_at=CHOSEN_AT)
    keep_choice(Paths(home).device_choice, choice)


@pytest.mark.slow
@pytest.mark.timeout(2 * START_SECONDS)
@pytest.mark.usefixtures("_vulkan_chosen")
def test_vectors_of_a_vulkan_device_are_those_of_the_processors(
    vulkan_server: Path,
    minilm: Path,
    minilm_golden: Golden,
    start_daemon: Callable[..., RunningDaemon],
) -> None:
    texts = minilm_golden.texts[:TEXTS]
    vectors = {}
    infos = {}
    for engine, expected in (("cpu", "cpu"), ("auto", "vulkan")):
        daemon = start_daemon(
            RUNED_LLAMA_SERVER=str(vulkan_server), RUNED_MODEL=str(minilm), RUNED_ENGINE=engine, GGML_VK_VISIBLE_DEVICES="0"
        )
        assert daemon.wait_for("STATUS_OK", timeout=START_SECONDS).get("message", "") == ""
        answer = daemon.call("EmbedBatch", {"texts": texts}, timeout=START_SECONDS)
        vectors[expected] = np.array([each["vector"] for each in answer["embeddings"]])
        infos[expected] = daemon.call("Info")
        assert daemon.stop() == 0
    assert (infos["cpu"]["accelerator"], infos["vulkan"]["accelerator"]) == ("cpu", "vulkan")
    assert ("deviceTunedAt" in infos["cpu"], infos["vulkan"]["deviceTunedAt"]) == (False, CHOSEN_AT)
    assert "llvmpipe" in infos["vulkan"]["device"]
    assert infos["cpu"]["fingerprint"] != infos["vulkan"]["fingerprint"]
    cosines = np.sum(vectors["cpu"] * vectors["vulkan"], axis=1)
    assert (cosines >= 0.9999).all(), cosines
    assert infos["vulkan"]["companyCosine"] >= 0.9999
