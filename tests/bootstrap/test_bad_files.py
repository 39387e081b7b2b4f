"""Installations into a home whose files were damaged or replaced, and from files of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runed.bootstrap.manifest import current_platform
from runed.errors import RunedError
from runed.log import configure_logging
from tests.bad_files import BAD_FILES, put_bad_file
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, Release, archive, sha256

PLACES = [
    "installed.json",
    "cache/verified.json",
    "cache/manifest.json",
    "bin/llama-cpp/.llama_server.sha256",
    "bin/llama-cpp/llama-b1/llama-server",
    "licenses/llama.cpp.txt",
    "models/tiny.gguf",
    "models/tiny.gguf.partial",
    "models/tiny.gguf.partial.json",
]


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_a_bad_file_anywhere_counts_as_missing(machine: Machine, release: Release, kind: str) -> None:
    url = release.publish()
    first = await machine.install(url)
    for place in [*PLACES, f"cache/llama-server-{sha256(release.engine)[:16]}.download"]:
        put_bad_file(kind, machine.paths.home / place)
    assert await machine.install() == first
    assert first.model.read_bytes() == MODEL
    assert machine.audit()["models"]["tiny"]["sha256"] == sha256(MODEL)
    (machine.paths.home / "manifest.json").unlink(missing_ok=True)
    release.site.requests.clear()
    assert await machine.install() == first
    assert [request.path for request in release.site.requests] == ["/manifest.json"]


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_a_bad_record_of_hashes_never_changes_the_name_of_a_model(machine: Machine, kind: str, tmp_path: Path) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(MODEL)
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho version: 1\n")
    engine.chmod(0o700)
    machine.paths.cache.mkdir(mode=0o700)
    put_bad_file(kind, machine.paths.cache / "verified.json")
    assert (await machine.install(model=model, llama_server=engine)).model_sha256 == sha256(MODEL)


@pytest.mark.parametrize("sha256_of_file", ["", "x\x1b", "0" * 63, "0" * 64 + "\n", "A" * 64])
async def test_a_hash_that_is_none_counts_as_missing(
    machine: Machine, release: Release, sha256_of_file: str, tmp_path: Path
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(MODEL)
    await machine.install(release.publish(), model=model)
    path = machine.paths.cache / "verified.json"
    entries = json.loads(path.read_bytes())
    entries[str(model)]["sha256"] = sha256_of_file
    entries["/" + "n" * 5000] = entries[str(model)]
    path.write_text(json.dumps(entries))
    assert (await machine.install()).model_sha256 == sha256(MODEL)
    model.write_bytes(MODEL + b"more")
    assert (await machine.install()).model_sha256 == sha256(MODEL + b"more")


async def test_a_manifest_file_with_files_needs_no_network(machine: Machine, release: Release, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "engine.tar.gz").write_bytes(release.engine)
    (tmp_path / "a model.gguf").write_bytes(MODEL)
    document = release.document()
    document["platforms"][current_platform()]["llama_server"]["url"] = "parts/engine.tar.gz"
    document["models"]["tiny"]["url"] = (tmp_path / "a model.gguf").as_uri()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(document))
    installation = await machine.install(str(manifest))
    assert installation.model.read_bytes() == MODEL
    assert release.site.requests == []
    assert any(progress.message == "copying tiny (0 MB)" for progress in machine.progress)
    assert machine.audit()["models"]["tiny"]["url"] == (tmp_path / "a model.gguf").as_uri()
    assert machine.leftovers() == []


async def test_nothing_that_is_installed_can_steer_the_terminal(machine: Machine, release: Release, tmp_path: Path) -> None:
    log = tmp_path / "log"
    configure_logging(log)
    escape = "\x1b]0;x\x07\x9b2J"
    release.engine = archive(("llama-b1/llama-server", f"#!/bin/sh\nprintf 'version: 1 {escape}\\n'\n"))
    good = release.engine
    installation = await machine.install(release.publish())
    assert installation.engine_version == r"1 \x1b]0;x\x07\x9b2J"
    release.engine = archive(("llama-b1/llama-server", f"#!/bin/sh\nprintf 'broken {escape}\\n'; exit 1\n"))
    with pytest.raises(RunedError) as caught:
        await machine.install(release.publish())
    own = tmp_path / f"{escape}.gguf"
    own.write_bytes(MODEL)
    release.engine = good
    await machine.install(release.publish(), model=own)
    own.unlink()
    with pytest.raises(RunedError, match="does not exist") as missing:
        await machine.install()
    configure_logging()
    told = [str(caught.value), str(missing.value), *(progress.message for progress in machine.progress)]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(told))
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]", log.read_bytes())
