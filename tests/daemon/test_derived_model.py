"""The default of users: Q8_0 is downloaded, and q6_K is made from it on this machine and served."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import RunningDaemon
from tools import docroot, engine, qwen3

StartDaemon = Callable[..., RunningDaemon]

TEXTS = [
    "hello world",
    "The quick brown fox jumps over the lazy dog.",
    "SELECT 1;",
    "안녕하세요 세계",
    "short",
    "0123456789" * 9,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[docroot.Site]:
    """A release like the packaged one, of a model that K-quants can pack. f16 and Q8_0 are downloads, q6_K is derived."""
    root = tmp_path_factory.mktemp("root")
    qwen3.write(root / "random.f16.gguf", qwen3.Shape())
    quantize = engine.programs_folder() / "llama-quantize"
    subprocess.run([quantize, root / "random.f16.gguf", root / "random.q8_0.gguf", "Q8_0"], check=True, capture_output=True)
    archive = root / "engine.tar.gz"
    docroot.pack_engine(engine.programs_folder(), archive, "llama-b1")

    def entry(path: Path) -> dict[str, Any]:
        return {"url": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}

    llama_server = entry(archive) | {"extract": "tar.gz", "exec": "llama-b1/llama-server"}
    manifest = {
        "version": 1,
        "platforms": {docroot.PLATFORM: {"llama_server": llama_server}},
        "models": {
            "random.f16": entry(root / "random.f16.gguf"),
            "random.q8_0": entry(root / "random.q8_0.gguf"),
            "random.q6_K": {"derive": {"from": "random.q8_0", "type": "Q6_K"}},
            "random.nonsense": {"derive": {"from": "random.q8_0", "type": "Q99_X"}},
        },
        "default_model": "random.q6_K",
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    with docroot.serve(root) as site:
        yield site


def serve(start_daemon: StartDaemon, site: docroot.Site, **env: str) -> RunningDaemon:
    return start_daemon(RUNED_LLAMA_SERVER="", RUNED_MODEL="", RUNED_MANIFEST=f"{site.url}manifest.json", **env)


def embed(daemon: RunningDaemon) -> NDArray[np.float32]:
    answer = daemon.call("EmbedBatch", {"texts": TEXTS})
    return np.array([embedding["vector"] for embedding in answer["embeddings"]], dtype=np.float32)


def test_default_is_made_here_and_is_near_the_original(start_daemon: StartDaemon, site: docroot.Site, home: Path) -> None:
    daemon = serve(start_daemon, site)
    health = daemon.wait_for("STATUS_OK")
    assert "message" not in health
    assert daemon.call("Info")["modelVariant"] == "random.q6_K"
    derived = embed(daemon)
    assert [path.name for path in (home / "models").iterdir()] == ["random.q6_K.gguf"]
    identity = hashlib.sha256((home / "models" / "random.q6_K.gguf").read_bytes()).hexdigest()[:16]
    assert daemon.call("Info")["modelIdentity"] == f"sha256:{identity}"
    assert daemon.stop() == 0

    original = serve(start_daemon, site, RUNED_MODEL_VARIANT="random.f16")
    original.wait_for("STATUS_OK")
    cosines = np.sum(derived * embed(original), axis=1)
    assert cosines.min() > 0.98
    assert cosines.max() < 0.99999  # otherwise it would not be quantized at all


def test_source_serves_and_health_says_why_when_it_cannot_be_made(start_daemon: StartDaemon, site: docroot.Site) -> None:
    daemon = serve(start_daemon, site, RUNED_MODEL_VARIANT="random.nonsense")
    health = daemon.wait_for("STATUS_OK")
    assert "random.q8_0" in health["message"]
    assert "random.nonsense" in health["message"]
    assert daemon.call("Info")["modelVariant"] == "random.q8_0"
    assert embed(daemon).shape == (len(TEXTS), 256)
