"""The checks of engine and model, each with one that passes and one that fails."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.doctor import engine
from runed.doctor.finding import Patient
from tests.doctor.conftest import only

Make = Callable[..., Patient]


def script(folder: Path, body: str) -> dict[str, str]:
    """Write a program in the place of the engine, and return the setting that names it."""
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return {"RUNED_LLAMA_SERVER": str(path)}


def test_the_real_engine_starts_and_has_its_libraries(patient: Make, llama_server: Path) -> None:
    subject = patient({"RUNED_LLAMA_SERVER": str(llama_server)})
    found = only(engine.engine, subject)
    assert (found.state.value, str(llama_server) in found.detail) == ("ok", True)
    assert only(engine.libraries, subject).detail == "all are there"


def test_without_an_engine_nothing_is_wrong(patient: Make) -> None:
    assert "runed install" in only(engine.engine, patient()).detail
    assert only(engine.engine, patient({"RUNED_ENGINE": "onnx"})).detail == "none is needed"
    assert only(engine.libraries, patient()).state.value == "ok"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exit 3", "exited with code 3"),
        ("kill -ILL $$", "an instruction that this processor does not have (SIGILL)"),
        ("echo 'error while loading shared libraries: libfoo.so.1' >&2; exit 127", "libfoo.so.1"),
    ],
)
def test_an_engine_that_does_not_run(patient: Make, tmp_path: Path, body: str, told: str) -> None:
    found = only(engine.engine, patient(script(tmp_path, body)))
    assert found.state.value == "failed"
    assert told in found.detail


def test_an_engine_that_hangs(patient: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_VERSION_SECONDS", 0.3)
    assert "did not tell its version" in only(engine.engine, patient(script(tmp_path, "exec sleep 60"))).detail


def test_an_engine_that_is_no_program(patient: Make, tmp_path: Path) -> None:
    path = tmp_path / "llama-server"
    setting = {"RUNED_LLAMA_SERVER": str(path)}
    assert "does not exist" in only(engine.engine, patient(setting)).detail
    path.write_bytes(b"\x7fELF" + b"\0" * 100)
    found = only(engine.engine, patient(setting))
    assert (found.state.value, f"chmod +x {path}" in found.remedy) == ("failed", True)
    path.chmod(0o755)
    assert "cannot be started" in only(engine.engine, patient(setting)).detail


def test_a_library_that_is_missing(patient: Make, tmp_path: Path) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "part.c").write_text("int part(void) { return 0; }\n")
    (tmp_path / "main.c").write_text("int part(void);\nint main(void) { return part(); }\n")
    library, program = tmp_path / "libmissing.so.1", tmp_path / "llama-server"
    shared = ["-shared", "-fPIC", "-Wl,-soname,libmissing.so.1", "-o", str(library), str(tmp_path / "part.c")]
    subprocess.run([compiler, *shared], check=True)
    linked = ["-o", str(program), str(tmp_path / "main.c"), str(library), f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([compiler, *linked], check=True)
    setting = {"RUNED_LLAMA_SERVER": str(program)}
    assert only(engine.libraries, patient(setting)).state.value == "ok"
    library.unlink()
    found = only(engine.libraries, patient(setting))
    assert (found.state.value, found.detail) == ("failed", "the engine lacks libmissing.so.1")


def test_libraries_that_small_systems_lack_are_told_with_their_packages() -> None:
    said = "\tlibgomp.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"
    assert engine._MISSING.findall(said) == ["libgomp.so.1"]
    assert engine._PACKAGES["libgomp.so.1"].startswith("libgomp1 ")


def test_the_processor(patient: Make, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc" / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu sse2 avx avx2 fma f16c\n")
    assert only(engine.processor, patient(root=tmp_path)).state.value == "ok"
    info.write_text("processor : 0\nflags\t\t: fpu sse2 avx\n")
    found = only(engine.processor, patient(root=tmp_path))
    if platform.machine() == "x86_64":
        assert (found.state.value, "avx2, fma, f16c" in found.detail) == ("warning", True)
    subject = patient()
    subject.paths.cache.mkdir()
    subject.paths.engine_quirks.write_text('{"no_repack": ["some engine"]}')
    assert "SIGILL" in only(engine.processor, subject).detail


def test_devices(patient: Make, tmp_path: Path) -> None:
    assert only(engine.devices, patient(root=tmp_path)).state.value == "ok"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  x\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").write_text("")
    found = only(engine.devices, patient(root=tmp_path))
    assert (found.state.value, "libcuda.so.1" in found.detail) == ("warning", True)
    subject = patient(root=tmp_path / "empty")
    subject.paths.cache.mkdir()
    use = {"accelerator": "cuda", "engine": "b", "driver": "1", "model": "m"}
    subject.paths.device_failures.write_text(json.dumps([{"use": use, "reason": "out of memory", "at": "2026-11-01T00:00:00"}]))
    found = only(engine.devices, subject)
    assert (found.state.value, "out of memory" in found.detail) == ("warning", True)
    assert "--reset" in found.remedy


def test_hashes(patient: Make) -> None:
    subject = patient()
    assert only(engine.hashes, subject).state.value == "ok"
    subject.paths.models.mkdir()
    model = subject.paths.model("small.f16")
    model.write_bytes(b"a model")
    record = {"url": "", "sha256": hashlib.sha256(b"a model").hexdigest(), "size": 7, "installed_at": ""}
    subject.paths.installed.write_text(json.dumps({"models": {"small.f16": record}}))
    assert only(engine.hashes, subject).detail == "1 models are as they were installed"
    model.write_bytes(b"a modem")
    found = only(engine.hashes, subject)
    assert (found.state.value, "runed pull small.f16" in found.remedy) == ("failed", True)
