"""Installations of engine and model into a home, also repeated ones."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runed.bootstrap import Phase
from runed.bootstrap.manifest import current_platform
from runed.errors import (
    ArchiveError,
    BootstrapError,
    DiskSpaceError,
    DownloadError,
    ManifestError,
    SettingsError,
    VerificationError,
)
from runed.locking import LockFile
from runed.log import configure_logging
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, VERSION_SCRIPT, Release, archive, file_sha256, sha256
from tests.bootstrap.site import Site, drop_after, redirect, running_site, stall_after, status


async def test_an_empty_home_gets_engine_model_audit_and_licences(machine: Machine, release: Release) -> None:
    release.engine = archive(("llama-b1/llama-server", VERSION_SCRIPT), ("llama-b1/LICENSE", b"the archive's own"))
    url = release.publish()
    installation = await machine.install(url)

    paths = machine.paths
    assert installation.llama_server == paths.llama_cpp / "llama-b1" / "llama-server"
    assert installation.model == paths.models / "tiny.gguf"
    assert installation.model.read_bytes() == MODEL
    assert (installation.variant, installation.model_sha256) == ("tiny", sha256(MODEL))
    assert installation.engine_version == "4242 (fake)"
    assert installation.warnings == ()
    assert paths.llama_cpp_marker.read_text().strip() == sha256(release.engine)
    assert (paths.licenses / "llama.cpp.txt").read_bytes() == b"the archive's own"
    assert not (paths.licenses / "Qwen3-Embedding.txt").exists()
    assert machine.leftovers() == []
    assert stat.S_IMODE(paths.models.stat().st_mode) == 0o700

    audit = machine.audit()
    assert audit["manifest"] == url
    assert audit["llama_server"]["url"] == f"{release.site.url}/engine.tar.gz"
    assert audit["llama_server"]["executable"] == "bin/llama-cpp/llama-b1/llama-server"
    assert audit["llama_server"]["version"] == "4242 (fake)"
    assert audit["models"]["tiny"]["sha256"] == sha256(MODEL)
    assert audit["models"]["tiny"]["size"] == len(MODEL)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", audit["models"]["tiny"]["installed_at"])


async def test_the_package_brings_the_licences_that_an_archive_lacks(machine: Machine, release: Release) -> None:
    release.models, release.default = {"qwen3-embedding-tiny": MODEL}, "qwen3-embedding-tiny"
    await machine.install(release.publish())
    assert "The ggml authors" in (machine.paths.licenses / "llama.cpp.txt").read_text()
    assert "Apache License" in (machine.paths.licenses / "Qwen3-Embedding.txt").read_text()


async def test_progress_tells_phases_bytes_and_words_but_not_too_often(machine: Machine, release: Release) -> None:
    release.models["tiny"] = MODEL * 20
    release.site.behaviours["/models/tiny.gguf"] = [drop_after(1_000_000)]
    await machine.install(release.publish())
    engine = [progress for progress in machine.progress if progress.phase is Phase.FETCHING_LLAMA_SERVER]
    model = [progress for progress in machine.progress if progress.phase is Phase.FETCHING_MODEL]
    assert machine.progress.index(engine[-1]) < machine.progress.index(model[0])
    assert {progress.bytes_total for progress in model} == {len(MODEL) * 20}
    assert [progress.bytes_done for progress in model] == sorted(progress.bytes_done for progress in model)
    assert model[-1].bytes_done == len(MODEL) * 20
    assert model[-1].message == "downloading tiny (6 MB)"
    assert any("trying again in" in progress.message for progress in model)
    assert len(model) < 20  # of about 100 pieces


async def test_progress_is_logged_about_ten_times(machine: Machine, release: Release, tmp_path: Path) -> None:
    log = tmp_path / "log"
    configure_logging(log)
    release.models["tiny"] = MODEL * 20
    await machine.install(release.publish())
    configure_logging()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    percents = [line["percent"] for line in lines if line.get("step", "").startswith("downloading tiny") and "percent" in line]
    assert percents[-1] == 100
    assert 5 <= len(percents) <= 10


async def test_a_warm_start_needs_no_network_no_lock_and_no_hash(machine: Machine, release: Release) -> None:
    release.models["tiny"] = MODEL
    manifest = machine.paths.home / "manifest.json"
    document = release.document()
    release.publish()
    document["models"]["tiny"]["url"] = f"{release.site.url}/models/tiny.gguf"
    document["platforms"][current_platform()]["llama_server"]["url"] = f"{release.site.url}/engine.tar.gz"
    manifest.write_text(json.dumps(document))
    first = await machine.install(str(manifest))
    release.site.requests.clear()
    machine.progress.clear()
    kept = {path: path.stat().st_ino for path in machine.paths.home.rglob("*")}
    with LockFile(machine.paths.install_lock) as lock:
        assert lock.try_acquire()
        assert await machine.install() == first
    assert release.site.requests == []
    assert machine.progress == []  # not even "verifying"
    assert {path: path.stat().st_ino for path in machine.paths.home.rglob("*")} == kept  # nothing was written again


async def test_a_warm_start_works_while_the_manifests_url_is_out_of_reach(machine: Machine, release: Release) -> None:
    with running_site() as site:
        release.site = site
        first = await machine.install(release.publish())
    started = time.monotonic()
    second = await machine.install()
    assert time.monotonic() - started < 15
    assert second.model_sha256 == first.model_sha256
    assert len(second.warnings) == 1
    assert "the installed files are used, since the manifest could not be: " in second.warnings[0]


@pytest.mark.parametrize("content", [b"<html>please log in</html>", b'{"version": 9}'])
async def test_a_portal_in_the_manifests_place_does_not_stop_a_warm_start(
    machine: Machine, release: Release, content: bytes
) -> None:
    await machine.install(release.publish())
    release.site.files["/manifest.json"] = content
    assert len((await machine.install()).warnings) == 1
    release.publish()
    assert (await machine.install()).warnings == ()


async def test_what_another_manifest_installed_is_no_answer_for_this_one(machine: Machine, release: Release) -> None:
    await machine.install(release.publish())
    with pytest.raises(DownloadError, match=r"other.json answered 404"):
        await machine.install(f"{release.site.url}/other.json")


async def test_an_unreachable_manifest_on_an_empty_home_is_tried_again_then_told(machine: Machine, site: Site) -> None:
    site.always["/manifest.json"] = status(503)
    with pytest.raises(DownloadError, match=r"manifest.json could not be downloaded: the server answered 503"):
        await machine.install(f"{site.url}/manifest.json")
    assert site.count("/manifest.json") == 3
    with pytest.raises(DownloadError, match=r"; or use files of your own, by RUNED_LLAMA_SERVER and RUNED_MODEL$"):
        await machine.install(f"{site.url}/manifest.json")


async def test_a_manifest_may_be_redirected(machine: Machine, release: Release) -> None:
    release.publish()
    release.site.always["/latest.json"] = redirect("/manifest.json")
    assert (await machine.install(f"{release.site.url}/latest.json")).variant == "tiny"


async def test_a_new_manifest_brings_a_new_engine_and_model(machine: Machine, release: Release) -> None:
    old = await machine.install(release.publish())
    release.engine = archive(("llama-b1/llama-server", VERSION_SCRIPT.replace("4242", "4343")))
    release.models["tiny"] = MODEL[::-1]
    release.publish()
    new = await machine.install()
    assert new.engine_version == "4343 (fake)"
    assert new.model.read_bytes() == MODEL[::-1]
    assert new.model_sha256 != old.model_sha256
    assert machine.leftovers() == []


async def test_a_change_of_variant_fetches_only_the_model(machine: Machine, release: Release) -> None:
    release.models["other"] = b"GGUF other"
    url = release.publish()
    await machine.install(url)
    installation = await machine.install(model_variant="other")
    assert installation.model.read_bytes() == b"GGUF other"
    assert release.site.count("/engine.tar.gz") == 1
    assert (await machine.install(model_variant=None)).variant == "tiny"
    assert release.site.count("/models/tiny.gguf") == 1


async def test_a_model_that_was_damaged_on_disk_is_noticed_and_fetched_again(machine: Machine, release: Release) -> None:
    installation = await machine.install(release.publish())
    damaged = bytearray(MODEL)
    damaged[1000] ^= 1
    installation.model.write_bytes(damaged)
    assert (await machine.install()).model.read_bytes() == MODEL
    assert release.site.count("/models/tiny.gguf") == 2
    assert release.site.count("/engine.tar.gz") == 1


async def test_a_model_whose_time_changed_is_only_verified_again(machine: Machine, release: Release) -> None:
    installation = await machine.install(release.publish())
    os.utime(installation.model, ns=(1, 1))
    machine.progress.clear()
    await machine.install()
    assert "verifying tiny.gguf" in [progress.message for progress in machine.progress]
    machine.progress.clear()
    await machine.install()
    assert "verifying tiny.gguf" not in [progress.message for progress in machine.progress]
    assert release.site.count("/models/tiny.gguf") == 1


async def test_an_engine_without_its_marker_or_program_is_fetched_again(machine: Machine, release: Release) -> None:
    installation = await machine.install(release.publish())
    machine.paths.llama_cpp_marker.unlink()
    await machine.install()
    assert release.site.count("/engine.tar.gz") == 2
    installation.program.unlink()
    await machine.install()
    assert release.site.count("/engine.tar.gz") == 3
    assert release.site.count("/models/tiny.gguf") == 1


@pytest.mark.parametrize("content", [None, b"not json", b'{"models": 3}'])
async def test_a_lost_audit_costs_no_download(machine: Machine, release: Release, content: bytes | None) -> None:
    first = await machine.install(release.publish())
    machine.paths.installed.unlink()
    if content is not None:
        machine.paths.installed.write_bytes(content)
    (machine.paths.cache / "verified.json").write_bytes(b"not json")
    assert await machine.install() == first
    assert release.site.count("/engine.tar.gz") == release.site.count("/models/tiny.gguf") == 1


async def test_an_engine_that_is_a_single_file_is_placed_by_its_name(machine: Machine, release: Release) -> None:
    release.engine = VERSION_SCRIPT.encode()
    document = release.document()
    document["platforms"][current_platform()]["llama_server"]["extract"] = ""
    url = release.publish()
    release.site.files["/manifest.json"] = json.dumps(document).encode()
    installation = await machine.install(url)
    assert installation.program.read_bytes() == release.engine
    assert installation.engine_version == "4242 (fake)"


async def test_with_both_sides_given_no_manifest_is_read(machine: Machine, llama_server: Path, tiny_qwen3: Path) -> None:
    installation = await machine.install("http://127.0.0.1:9/none.json", llama_server=llama_server, model=tiny_qwen3)
    assert (installation.llama_server, installation.model, installation.variant) == (llama_server, tiny_qwen3, "")
    assert installation.model_sha256 == file_sha256(tiny_qwen3)
    assert installation.engine_version
    machine.progress.clear()
    await machine.install()
    assert machine.progress == []  # the hash of the user's model is remembered too


async def test_with_an_engine_given_only_the_model_is_fetched_even_on_an_unknown_platform(
    machine: Machine, release: Release, llama_server: Path
) -> None:
    url = release.publish()
    document = release.document() | {"platforms": {}}
    release.site.files["/manifest.json"] = json.dumps(document).encode()
    installation = await machine.install(url, llama_server=llama_server)
    assert installation.llama_server == llama_server
    assert release.site.count("/engine.tar.gz") == 0
    assert "llama_server" not in machine.audit()


async def test_with_a_model_given_only_the_engine_is_fetched(machine: Machine, release: Release, tiny_qwen3: Path) -> None:
    installation = await machine.install(release.publish(), model=tiny_qwen3, model_variant="no such variant")
    assert installation.model == tiny_qwen3
    assert installation.program.is_relative_to(machine.paths.llama_cpp)
    assert release.site.count("/models/tiny.gguf") == 0


@pytest.mark.parametrize("which", ["missing", "directory", "not executable"])
async def test_an_engine_of_ones_own_that_cannot_be_run_is_one_clear_error(
    machine: Machine, tiny_qwen3: Path, tmp_path: Path, which: str
) -> None:
    path = tmp_path / "llama-server"
    if which == "directory":
        path.mkdir()
    elif which == "not executable":
        path.write_text(VERSION_SCRIPT)
    problem = "does not exist" if which == "missing" else "is not an executable file"
    with pytest.raises(SettingsError, match=rf"the engine {path} {problem}; correct RUNED_LLAMA_SERVER .*, or unset it"):
        await machine.install(llama_server=path, model=tiny_qwen3)


@pytest.mark.parametrize("which", ["missing", "directory"])
async def test_a_model_of_ones_own_that_is_not_there_is_one_clear_error(
    machine: Machine, llama_server: Path, tmp_path: Path, which: str
) -> None:
    path = tmp_path / "model.gguf"
    if which == "directory":
        path.mkdir()
    with pytest.raises(SettingsError, match=rf"the model {path} .*; correct RUNED_MODEL "):
        await machine.install(llama_server=llama_server, model=path)


async def test_an_engine_of_ones_own_need_not_tell_its_version(machine: Machine, tiny_qwen3: Path, tmp_path: Path) -> None:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    installation = await machine.install(llama_server=path, model=tiny_qwen3)
    assert (installation.engine_version, installation.warnings) == ("", ())


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (status(404), DownloadError),
        (status(503), DownloadError),
        (drop_after(0), DownloadError),
        (stall_after(10), DownloadError),
        (redirect("/models/tiny.gguf"), DownloadError),
    ],
)
async def test_the_try_after_a_failed_download_works(
    machine: Machine, release: Release, behaviour: object, error: type[BootstrapError]
) -> None:
    url = release.publish()
    release.site.always["/models/tiny.gguf"] = behaviour  # type: ignore[assignment] # a Behaviour, by the table above
    with pytest.raises(error, match=r"models/tiny.gguf"):
        await machine.install(url)
    release.site.released.set()
    release.site.always.clear()
    assert (await machine.install(url)).model.read_bytes() == MODEL
    assert release.site.count("/engine.tar.gz") == 1  # files that were there stayed
    assert machine.leftovers() == []


@pytest.mark.parametrize("content", [MODEL[:-1], MODEL + b"more", MODEL[::-1]])
async def test_a_wrong_file_is_refused_and_the_right_one_taken_next_time(
    machine: Machine, release: Release, content: bytes
) -> None:
    url = release.publish()
    release.site.files["/models/tiny.gguf"] = content
    with pytest.raises(VerificationError, match="but the manifest says"):
        await machine.install(url)
    release.publish()
    assert (await machine.install(url)).model.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("engine", "error", "match"),
    [
        (b"no archive", ArchiveError, "the archive of the engine is broken"),
        (archive(("../evil", b"x"), ("llama-b1/llama-server", VERSION_SCRIPT)), ArchiveError, "may lead out of its folder"),
        (archive(("llama-b1/other", VERSION_SCRIPT)), ArchiveError, "holds no executable llama-b1/llama-server"),
        (archive(("llama-b1/llama-server", "#!/bin/sh\necho oh no\nexit 3\n")), BootstrapError, "exited with code 3: oh no"),
        (archive(("llama-b1/llama-server", "#!/bin/sh\nkill -ILL $$\n")), BootstrapError, "was ended by SIGILL"),
        (archive(("llama-b1/llama-server", "#!/no/such/loader\n")), BootstrapError, "cannot be started: No such file"),
        (archive(("llama-b1/llama-server", "\x7fELF not for this machine")), BootstrapError, "another processor or C library"),
        (
            archive(("llama-b1/llama-server", "#!/bin/sh\necho 'version `GLIBC_2.38` not found'\nexit 1\n")),
            BootstrapError,
            r"C library is too old \(glibc 2.35 is needed\)",
        ),
        (
            archive(("llama-b1/llama-server", "#!/bin/sh\necho 'libgomp.so.1: cannot open'\nexit 127\n")),
            BootstrapError,
            "Install libgomp",
        ),
    ],
)
async def test_an_engine_that_does_not_work_never_takes_the_place_of_one_that_does(
    machine: Machine, release: Release, engine: bytes, error: type[BootstrapError], match: str
) -> None:
    working = await machine.install(release.publish())
    good, release.engine = release.engine, engine
    release.publish()
    with pytest.raises(error, match=match):
        await machine.install()
    assert working.program.read_text() == VERSION_SCRIPT
    assert not (machine.paths.home / "bin" / "evil").exists()
    downloads = release.site.count("/engine.tar.gz")
    with pytest.raises(error, match=match):
        await machine.install()
    assert release.site.count("/engine.tar.gz") == downloads  # a broken archive is not downloaded again at every try
    release.engine = good
    release.publish()
    assert (await machine.install()).engine_version == "4242 (fake)"


async def test_an_engine_that_lost_a_library_is_installed_anew(
    machine: Machine, release: Release, real_engine_archive: bytes
) -> None:
    release.engine = real_engine_archive
    broken = await machine.install(release.publish())
    for library in broken.program.parent.glob("libllama.*"):
        library.unlink()
    repaired = await machine.install()
    assert repaired.engine_version
    assert any(repaired.program.parent.glob("libllama.*"))
    assert release.site.count("/engine.tar.gz") == 2


async def test_the_real_engine_works_after_the_way_through_an_archive(
    machine: Machine, release: Release, real_engine_archive: bytes
) -> None:
    release.engine = real_engine_archive
    installation = await machine.install(release.publish())
    assert installation.engine_version
    assert any(path.is_symlink() for path in installation.program.parent.iterdir())


@pytest.mark.parametrize("in_place", [b"", b"of an older manifest"])
async def test_a_model_that_cannot_fit_is_refused_before_the_first_byte(
    machine: Machine, release: Release, in_place: bytes
) -> None:
    machine.paths.models.mkdir(mode=0o700)
    machine.paths.model("tiny").write_bytes(in_place)
    url = release.publish()
    document = release.document()
    document["models"]["tiny"]["size"] = 1 << 60
    release.site.files["/manifest.json"] = json.dumps(document).encode()
    with pytest.raises(
        DiskSpaceError, match=rf"installing engine and model needs .* MB in {machine.paths.home}, but only .* free"
    ):
        await machine.install(url)
    assert [request.path for request in release.site.requests] == ["/manifest.json"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "has version 2"),
        ({"platforms": {}}, f"no llama_server for {current_platform()}"),
        ({"default_model": "gone"}, "no model 'gone'; it has tiny"),
        ({"models": 3}, r"Expected `object`, got `int` - at `\$.models`"),
    ],
)
async def test_a_manifest_that_does_not_help_is_told_and_leaves_nothing(
    machine: Machine, release: Release, change: dict[str, object], match: str
) -> None:
    url = release.publish()
    release.site.files["/manifest.json"] = json.dumps(release.document() | change).encode()
    with pytest.raises(ManifestError, match=match):
        await machine.install(url)
    assert machine.leftovers() == []
    release.publish()
    assert (await machine.install(url)).variant == "tiny"


async def test_http_manifests_are_warned_of_in_the_log(machine: Machine, release: Release, tmp_path: Path) -> None:
    configure_logging(tmp_path / "log")
    await machine.install(release.publish())
    configure_logging()
    assert "anyone on the way can change what is installed" in (tmp_path / "log").read_text()


async def test_a_home_that_cannot_be_written_is_told(machine: Machine, release: Release) -> None:
    url = release.publish()
    await machine.install(url)
    machine.paths.install_lock.unlink()
    machine.paths.install_lock.mkdir()
    machine.paths.llama_cpp_marker.unlink()
    with pytest.raises(BootstrapError, match=r"cannot install engine and model: Is a directory .*install.lock"):
        await machine.install()


def test_the_bootstrap_does_not_import_httpx_unless_it_downloads() -> None:
    script = "import sys, runed.bootstrap; sys.exit('httpx' in sys.modules or 'tenacity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0
