"""A real device that every machine can have: the software Vulkan of Mesa, with the engine of a prebuilt wheel."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runed.paths import Paths
from tests.cli.support import SCRIPTS, Cli
from tests.support import Golden, RunningDaemon
from tools import prebuilt

START_SECONDS = 900.0
"""Seconds that the first start may take: the driver compiles each kernel when it is first used."""

TEXTS = 6


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


@pytest.mark.slow
@pytest.mark.timeout(2 * START_SECONDS)
def test_vectors_of_a_vulkan_device_are_those_of_the_processors(
    home: Path, vulkan_server: Path, minilm: Path, minilm_golden: Golden, start_daemon: Callable[..., RunningDaemon]
) -> None:
    texts = minilm_golden.texts[:TEXTS]
    vectors = {}
    infos = {}
    for engine in ("cpu", "vulkan"):
        daemon = start_daemon(
            RUNED_LLAMA_SERVER=str(vulkan_server), RUNED_MODEL=str(minilm), RUNED_ENGINE=engine, GGML_VK_VISIBLE_DEVICES="0"
        )
        assert daemon.wait_for("STATUS_OK", timeout=START_SECONDS).get("message", "") == ""
        answer = daemon.call("EmbedBatch", {"texts": texts}, timeout=START_SECONDS)
        vectors[engine] = np.array([each["vector"] for each in answer["embeddings"]])
        infos[engine] = daemon.call("Info")
        assert daemon.stop() == 0
    assert (infos["cpu"]["accelerator"], infos["vulkan"]["accelerator"]) == ("cpu", "vulkan")
    assert "llvmpipe" in infos["vulkan"]["device"]
    assert infos["cpu"]["fingerprint"] != infos["vulkan"]["fingerprint"]
    cosines = np.sum(vectors["cpu"] * vectors["vulkan"], axis=1)
    assert (cosines >= 0.9999).all(), cosines
    assert infos["vulkan"]["companyCosine"] >= 0.9999


@pytest.mark.slow
@pytest.mark.timeout(3 * START_SECONDS)
def test_the_device_is_compared_with_the_processors_and_used_if_it_is_chosen(
    home: Path, vulkan_server: Path, tiny_qwen3: Path, start_daemon: Callable[..., RunningDaemon]
) -> None:
    environment = {
        "RUNED_LLAMA_SERVER": str(vulkan_server),
        "RUNED_MODEL": str(tiny_qwen3),
        "RUNED_CTX_SIZE": "256",
        "GGML_VK_VISIBLE_DEVICES": "0",
    }
    done = subprocess.run(
        [SCRIPTS / "runed", "bench", "--tune", "--force", "--json", "--seconds", "0.05"],
        env=Cli(home, environment | {"RUNED_ENGINE": "vulkan"}).environment_of_a_command(),
        capture_output=True,
        timeout=2 * START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [each["accelerator"] for each in document["devices"]] == ["vulkan", "cpu"]
    assert "llvmpipe" in document["devices"][0]["device"]
    assert all(way["texts_per_second"] > 0 for each in document["devices"] for way in each["measurements"])
    path = Paths(home).device_choice
    (choice,) = json.loads(path.read_text())
    assert (choice["chosen"] or {"accelerator": "cpu"})["accelerator"] == document["accelerator"]
    # The processors of this machine are as fast as its software device, or faster. What follows is about the other outcome.
    path.write_text(json.dumps([choice | {"chosen": choice["compared"][0]}]))
    daemon = start_daemon(**environment)
    daemon.wait_for("STATUS_OK", timeout=START_SECONDS)
    info = daemon.call("Info")
    assert (info["accelerator"], info["deviceTunedAt"]) == ("vulkan", choice["chosen_at"])
    assert daemon.stop() == 0
