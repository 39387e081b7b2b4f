"""Models made on this machine, by the real llama-quantize and by programs that fail."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import psutil
import pytest

from runed.bootstrap import Installation
from runed.bootstrap.programs import quantize
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, VERSION_SCRIPT, Release, archive, file_sha256, sha256
from tests.support import process_gone, wait_until

COPY = '#!/bin/sh\necho "[   1/  10] tensor"\ncp "$2" "$3"\nprintf more >> "$3"\n'
"""A quantizer that quickly makes another file that is a valid model."""


def tensor_types(path: Path) -> set[str]:
    return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def real(release: Release, real_engine_archive: bytes, tiny_qwen3: Path) -> Release:
    """A release with the real engine. Its default model is derived."""
    release.engine = real_engine_archive
    release.models = {"qwen.f32": tiny_qwen3.read_bytes()}
    release.derived = {"qwen.q8_0": ("qwen.f32", "Q8_0"), "qwen.q4_0": ("qwen.f32", "Q4_0")}
    release.default = "qwen.q8_0"
    return release


@pytest.fixture
def faked(release: Release) -> Callable[[str | None], str]:
    """Publish a release with the given quantizer, or with none, and return its URL. Its default model is derived."""

    def publish(quantizer: str | None) -> str:
        members = [("llama-b1/llama-server", VERSION_SCRIPT)]
        release.engine = archive(*members, *([("llama-b1/llama-quantize", quantizer)] if quantizer else []))
        release.derived, release.default = {"derived": ("tiny", "Q6_K")}, "derived"
        return release.publish()

    return publish


async def test_the_real_quantizer_makes_the_model_and_the_audit_has_both_hashes(
    machine: Machine, real: Release, tiny_qwen3: Path
) -> None:
    installation = await machine.install(real.publish())
    assert installation.warnings == ()
    assert (installation.variant, installation.model.name) == ("qwen.q8_0", "qwen.q8_0.gguf")
    assert "Q8_0" in tensor_types(installation.model)
    assert installation.model_sha256 == file_sha256(installation.model)
    assert [path.name for path in machine.paths.models.iterdir()] == ["qwen.q8_0.gguf"]  # the source is dropped
    record = machine.audit()["models"]
    assert list(record) == ["qwen.q8_0"]
    assert record["qwen.q8_0"]["sha256"] == installation.model_sha256
    assert record["qwen.q8_0"]["derived_from"] == {
        "variant": "qwen.f32",
        "sha256": file_sha256(tiny_qwen3),
        "type": "Q8_0",
        "engine_version": installation.engine_version,
    }
    assert any("making qwen.q8_0 of qwen.f32" in progress.message for progress in machine.progress)
    assert machine.leftovers() == []


async def test_a_derived_model_is_used_again_without_its_source(machine: Machine, real: Release) -> None:
    first = await machine.install(real.publish())
    real.site.requests.clear()
    assert await machine.install() == first
    assert [request.path for request in real.site.requests] == ["/manifest.json"]


async def test_the_source_is_kept_if_so_set_and_used_for_the_next_variant(machine: Machine, real: Release) -> None:
    await machine.install(real.publish(), keep_source=True)
    installation = await machine.install(model_variant="qwen.q4_0")
    assert "Q4_0" in tensor_types(installation.model)
    assert real.site.count("/models/qwen.f32.gguf") == 1
    assert sorted(machine.audit()["models"]) == ["qwen.f32", "qwen.q4_0", "qwen.q8_0"]


async def test_a_quantized_source_is_quantized_again(
    machine: Machine, real: Release, llama_server: Path, tmp_path: Path
) -> None:
    q8_0 = (await machine.install(real.publish())).model.read_bytes()
    real.models, real.derived, real.default = {"qwen.q8_0": q8_0}, {"qwen.q4_0": ("qwen.q8_0", "Q4_0")}, "qwen.q4_0"
    real.publish()
    installation = await machine.install()
    assert installation.warnings == ()
    assert "Q4_0" in tensor_types(installation.model)


async def test_the_quantizer_beside_an_engine_of_ones_own_is_used_even_through_a_link(
    machine: Machine, real: Release, llama_server: Path, tmp_path: Path
) -> None:
    link = tmp_path / "llama-server"
    link.symlink_to(llama_server)
    installation = await machine.install(real.publish(), llama_server=link)
    assert (installation.llama_server, installation.variant) == (link, "qwen.q8_0")


async def test_a_type_that_the_quantizer_does_not_know_leaves_the_source_serving(
    machine: Machine, real: Release, tiny_qwen3: Path
) -> None:
    real.derived = {"qwen.q8_0": ("qwen.f32", "Q9_9")}
    installation = await machine.install(real.publish())
    assert installation.variant == "qwen.f32"
    assert "llama-quantize to Q9_9 exited with code 1: " in installation.warnings[0]


def check_source_serves(installation: Installation, machine: Machine) -> None:
    assert (installation.variant, installation.model.read_bytes()) == ("tiny", MODEL)
    assert installation.model_sha256 == sha256(MODEL)
    assert len(installation.warnings) == 1
    assert installation.warnings[0].startswith("tiny serves instead of derived, which could not be made from it: ")
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        (None, "there is no llama-quantize beside "),
        ("#!/bin/sh\necho no memory >&2\nexit 1\n", "exited with code 1: no memory"),
        ("#!/bin/sh\nprintf garbage > $3\n", "is not a GGUF"),
        ("#!/bin/sh\nexit 0\n", "cannot make derived: No such file or directory"),
        ("#!/bin/sh\nprintf GGUF > $3\nkill -SEGV $$\n", "was ended by SIGSEGV without a word"),
        ("#!/no/such/interpreter\n", "cannot be started: No such file"),
    ],
)
async def test_a_quantizer_that_fails_leaves_the_source_serving_and_is_tried_again_without_a_download(
    machine: Machine, release: Release, faked: Callable[[str | None], str], quantizer: str | None, reason: str
) -> None:
    url = faked(quantizer)
    for _ in range(2):
        installation = await machine.install(url)
        check_source_serves(installation, machine)
        assert reason in installation.warnings[0]
    assert release.site.count("/models/tiny.gguf") == 1
    installation = await machine.install(faked(COPY))
    assert (installation.variant, installation.warnings) == ("derived", ())
    assert installation.model.read_bytes() == MODEL + b"more"
    assert release.site.count("/models/tiny.gguf") == 1


async def test_a_derived_model_that_was_damaged_is_made_again(
    machine: Machine, release: Release, faked: Callable[[str | None], str]
) -> None:
    installation = await machine.install(faked(COPY))
    installation.model.write_bytes(b"GGUF" + bytes(len(MODEL)))
    again = await machine.install()
    assert again.model.read_bytes() == MODEL + b"more"
    assert release.site.count("/models/tiny.gguf") == 2


@pytest.mark.parametrize("change", ["source", "type"])
async def test_another_source_or_type_makes_another_model(
    machine: Machine, release: Release, faked: Callable[[str | None], str], change: str
) -> None:
    await machine.install(faked(COPY))
    if change == "source":
        release.models["tiny"] = MODEL + b"new"
    else:
        release.derived = {"derived": ("tiny", "Q4_K_M")}
    release.publish()
    await machine.install()
    derivation = machine.audit()["models"]["derived"]["derived_from"]
    assert derivation["sha256"] == sha256(release.models["tiny"])
    assert derivation["type"] == release.derived["derived"][1]


async def test_without_its_audit_a_derived_model_is_made_again(machine: Machine, faked: Callable[[str | None], str]) -> None:
    first = await machine.install(faked(COPY))
    machine.paths.installed.unlink()
    assert await machine.install() == first


async def test_a_leftover_of_a_killed_quantizer_is_not_written_into(
    machine: Machine, faked: Callable[[str | None], str], home: Path
) -> None:
    machine.paths.models.mkdir(mode=0o700)
    leftover, other = machine.paths.models / "derived.gguf.partial", home / "still open by an orphan"
    leftover.write_bytes(b"GGUF of the orphan")
    os.link(leftover, other)
    installation = await machine.install(faked(COPY))
    assert installation.model.read_bytes() == MODEL + b"more"
    assert other.read_bytes() == b"GGUF of the orphan"


async def test_a_cancel_ends_the_quantizer_and_the_next_try_needs_no_download(
    machine: Machine, release: Release, faked: Callable[[str | None], str], home: Path
) -> None:
    pids = home / "pids"
    url = faked(f'#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nprintf GGUF > "$3"\nwait\n')
    task = asyncio.create_task(machine.install(url))
    await asyncio.to_thread(wait_until, pids.exists, what="the quantizer")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids.read_text().split():
        wait_until(lambda pid=int(pid): process_gone(pid), what=f"the end of {pid}")  # type: ignore[misc] # a bound loop variable
    assert machine.leftovers() == []
    assert (await machine.install(faked(COPY))).variant == "derived"
    assert release.site.count("/models/tiny.gguf") == 1


async def test_a_cancel_in_the_midst_of_the_start_ends_the_whole_group(home: Path) -> None:
    pids, program = home / "pids", home / "llama-quantize"
    program.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    program.chmod(0o700)
    others = set(psutil.Process().children())
    task = asyncio.create_task(quantize(program, home, home, "Q6_K", on_tensor=lambda number, total: None))
    while set(psutil.Process().children()) == others:  # noqa: ASYNC110 # no event tells of the start
        await asyncio.sleep(0)
    # Without a turn of the event loop, which has not heard yet that the program runs.
    wait_until(pids.exists, what="the quantizer")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids.read_text().split():
        wait_until(lambda pid=int(pid): process_gone(pid), what=f"the end of {pid}")  # type: ignore[misc] # a bound loop variable


async def test_a_model_that_is_not_ours_to_drop_stays(
    machine: Machine, llama_server: Path, tiny_qwen3: Path, tmp_path: Path, real: Release
) -> None:
    mine = tmp_path / "mine.gguf"
    shutil.copy(tiny_qwen3, mine)
    await machine.install(real.publish(), model=mine)
    assert mine.exists()
    assert not any(machine.paths.models.iterdir())
