"""Models that ONNX Runtime serves: no `llama-server` is looked for, fetched or started for them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from runed.bootstrap.manifest import current_platform
from runed.domain.device import CPU
from runed.errors import ManifestError, ModelFileError
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, Release, sha256
from tests.bootstrap.site import Site
from tests.onnx_files import write_own_model


async def test_the_engine_is_not_fetched(machine: Machine, site: Site, release: Release) -> None:
    installation = await machine.install(release.publish(), engine="onnx")
    assert (installation.llama_server, installation.engine_version, installation.device) == (None, "", CPU)
    assert installation.model.read_bytes() == MODEL
    assert site.count("/engine.tar.gz") == 0
    assert not machine.paths.llama_cpp.exists()
    assert machine.leftovers() == []


async def test_the_next_start_needs_nothing_from_the_network(machine: Machine, site: Site, release: Release) -> None:
    manifest = machine.paths.home / "manifest.json"
    release.publish()
    document = release.document()
    document["models"]["tiny"]["url"] = f"{site.url}/models/tiny.gguf"
    manifest.write_text(json.dumps(document))
    await machine.install(str(manifest), engine="onnx")
    asked = len(site.requests)
    await machine.install(engine="onnx")
    assert len(site.requests) == asked


async def test_another_setting_fetches_it_later(machine: Machine, site: Site, release: Release) -> None:
    url = release.publish()
    await machine.install(url, engine="onnx")
    installation = await machine.install(url, engine="auto")
    assert installation.llama_server is not None
    assert site.count("/engine.tar.gz") == 1
    again = await machine.install(url, engine="onnx")
    assert again.llama_server is None
    assert again.model_sha256 == installation.model_sha256


async def test_a_platform_without_an_engine_can_serve(machine: Machine, site: Site, release: Release) -> None:
    document = release.document()
    document["platforms"] = {"plan9-mips": document["platforms"][current_platform()]}
    release.publish()
    site.files["/manifest.json"] = json.dumps(document).encode()
    url = f"{site.url}/manifest.json"
    assert (await machine.install(url, engine="onnx")).llama_server is None
    with pytest.raises(ManifestError, match="has no llama_server for"):
        await machine.install(url, engine="auto")


async def test_a_model_that_is_made_on_the_machine_needs_the_engine_for_that(
    machine: Machine, site: Site, release: Release
) -> None:
    release.derived["small"] = ("tiny", "Q8_0")
    release.default = "small"
    installation = await machine.install(release.publish(), engine="onnx")
    assert site.count("/engine.tar.gz") == 1, "its archive has llama-quantize"
    assert installation.llama_server is not None
    assert installation.device == CPU


async def test_a_gguf_of_the_users_own_is_used_without_any_manifest(machine: Machine, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(MODEL)
    installation = await machine.install(str(tmp_path / "no-manifest.json"), engine="onnx", model=own)
    assert (installation.llama_server, installation.model_sha256) == (None, sha256(MODEL))


@pytest.mark.parametrize("engine", ["auto", "onnx", "cpu", "vulkan"])
async def test_an_onnx_file_is_used_whatever_the_setting(machine: Machine, tmp_path: Path, engine: str) -> None:
    own = write_own_model(tmp_path / "own")
    installation = await machine.install(str(tmp_path / "no-manifest.json"), engine=engine, model=own)
    assert (installation.llama_server, installation.model, installation.warnings) == (None, own, ())


def lines_of_sha256sum(folder: Path, names: list[str]) -> bytes:
    return subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout


async def test_the_hash_of_an_onnx_file_is_that_of_all_its_files(machine: Machine, tmp_path: Path) -> None:
    own = write_own_model(tmp_path / "own", outside="model.onnx_data")
    before = (await machine.install(model=own)).model_sha256
    names = ["model.onnx", "model.onnx_data", "tokenizer.json", "config.json"]
    assert before == sha256(lines_of_sha256sum(own.parent, names))
    for name in names[1:]:
        path = own.parent / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert (await machine.install(model=own)).model_sha256 != before, name
        path.write_bytes(content)
    assert (await machine.install(model=own)).model_sha256 == before


async def test_an_onnx_file_without_its_tokenizer_is_refused(machine: Machine, tmp_path: Path) -> None:
    own = write_own_model(tmp_path / "own" / "deep")
    (own.parent / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"has no tokenizer\.json beside it"):
        await machine.install(model=own)
