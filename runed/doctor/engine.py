"""Checks of the engine and the model: the program, its libraries, the processor, devices, and hashes."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runed.bootstrap.audit import Installed
from runed.bootstrap.disk import sha256_of
from runed.bootstrap.drivers import find_drivers
from runed.doctor.finding import Finding, Patient, failed, ok, warning
from runed.files import read_record
from runed.os_errors import forbids_programs, noexec
from runed.processes import describe_exit
from runed.settings import ONNX, engine_environment

_VERSION_SECONDS = 20.0
"""Seconds that the engine may take to tell its version. Its first start may wait for a slow disk."""

_MISSING = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_NO_SYMBOLS = re.compile(r"version `(GLIBC|GLIBCXX|CXXABI)_[0-9.]+' not found")

_PACKAGES = {
    "libgomp.so.1": "libgomp1 (Debian, Ubuntu) or libgomp (Fedora, Alpine)",
    "libstdc++.so.6": "libstdc++6 (Debian, Ubuntu) or libstdc++ (Fedora, Alpine)",
    "libgcc_s.so.1": "libgcc-s1 (Debian, Ubuntu) or libgcc (Fedora, Alpine)",
    "libcurl.so.4": "libcurl4 (Debian, Ubuntu) or libcurl (Fedora, Alpine)",
    "libvulkan.so.1": "libvulkan1 (Debian, Ubuntu) or vulkan-loader (Fedora, Alpine)",
    "libcuda.so.1": "the driver of NVIDIA",
}
"""Packages of the libraries that engines need and small systems lack."""

_WANTED = ("avx2", "fma", "f16c")
"""Instructions of x86-64 without which the engine is several times slower."""


class _Quirks(msgspec.Struct):
    no_repack: list[str] = []
    one_slot: list[str] = []


class _Failure(msgspec.Struct):
    reason: str
    at: str


def program_of(patient: Patient) -> Path | None:
    """Return the `llama-server` of a home; None if none is installed yet."""
    if patient.settings.llama_server is not None:
        return patient.settings.llama_server
    installed = read_record(patient.paths.installed, Installed)
    return patient.paths.home / installed.llama_server.executable if installed and installed.llama_server else None


def engine(patient: Patient) -> Iterator[Finding]:
    """Check that the engine starts."""
    program = program_of(patient)
    if program is None:
        needs_none = patient.settings.engine == ONNX or patient.settings.backend
        detail = "none is needed" if needs_none else "none is installed; the first call, or `runed install`, fetches it"
        yield ok("engine", detail)
        return
    own = "correct RUNED_LLAMA_SERVER, or unset it to have an engine installed"
    again = own if patient.settings.llama_server else "run `runed install`, which fetches it again"
    if not program.is_file():
        yield failed("engine", f"{program} does not exist", again)
    elif not os.access(program, os.X_OK):
        why = noexec(program) if forbids_programs(program) else "it is not executable"
        yield failed("engine", f"{program} cannot be run: {why}", f"run `chmod +x {program}`, or {again}")
    else:
        yield _run(program, again)


def _run(program: Path, again: str) -> Finding:
    foreign = "set RUNED_LLAMA_SERVER to a llama-server that was built for this machine"
    try:
        done = subprocess.run(
            [program, "--version"],
            env=engine_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return failed("engine", f"{program} did not tell its version within {_VERSION_SECONDS:g} s", again)
    except OSError as error:
        return failed(
            "engine", f"{program} cannot be started: {error.strerror}; it is for another processor or C library", foreign
        )
    said = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode == -signal.SIGILL:
        return failed("engine", f"{program} uses an instruction that this processor does not have (SIGILL)", foreign)
    if done.returncode:
        last = said.strip().splitlines()[-1:] or ["without a word"]
        return failed("engine", f"{program} {describe_exit(done.returncode)}: {last[0][:300]}", again)
    version = re.search(r"^version: *(.+)$", said, re.MULTILINE)
    return ok("engine", f"{program}, version {version[1][:80] if version else 'unknown'}")


def libraries(patient: Patient) -> Iterator[Finding]:
    """Check that the dynamic linker finds the libraries of the engine, as `ldd` does."""
    program = program_of(patient)
    if program is None or sys.platform != "linux" or not program.is_file() or not os.access(program, os.X_OK):
        yield ok("libraries", "there is no engine to look at")
        return
    with program.open("rb") as file:
        is_elf = file.read(4) == b"\x7fELF"
    if not is_elf:
        yield ok("libraries", f"{program.name} is a script")
        return
    try:
        done = subprocess.run(
            [program],
            env=engine_environment() | {"LD_TRACE_LOADED_OBJECTS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired):
        yield ok("libraries", "the program does not start, as told above")
        return
    said = (done.stdout + done.stderr).decode(errors="replace")
    if missing := sorted(set(_MISSING.findall(said))):
        packages = ", ".join(_PACKAGES.get(name, name) for name in missing)
        yield failed("libraries", f"the engine lacks {', '.join(missing)}", f"install {packages}")
    elif found := _NO_SYMBOLS.search(said):
        name = {"GLIBC": "C library"}.get(found[1], "C++ library")
        remedy = "use a newer system, or set RUNED_LLAMA_SERVER to a llama-server that was built on this one"
        yield failed("libraries", f"the {name} of this system is too old: {found[0]}", remedy)
    else:
        yield ok("libraries", "all are there")


def processor(patient: Patient) -> Iterator[Finding]:
    """Check for instructions that the engine wants, and for those that it was seen to die of."""
    quirks = read_record(patient.paths.engine_quirks, _Quirks) or _Quirks()
    flags = re.search(r"^flags\s*:(.*)$", patient.read("proc/cpuinfo"), re.MULTILINE)
    lacks = [name for name in _WANTED if name not in flags[1].split()] if flags and platform.machine() == "x86_64" else []
    if quirks.no_repack:
        yield warning(
            "processor",
            "the engine died of an instruction that this processor or its hypervisor refuses (SIGILL), and runs without its "
            "fast kernels",
            "nothing has to be done; a llama-server that was built on this machine may be faster (RUNED_LLAMA_SERVER)",
        )
    elif lacks:
        yield warning(
            "processor", f"it lacks {', '.join(lacks)}, so embeddings are slow", "use another machine, or a smaller model"
        )
    else:
        yield ok("processor", "no instruction is known to be refused")


def devices(patient: Patient) -> Iterator[Finding]:
    """Check the drivers of accelerators, and the failures of devices that are remembered."""
    drivers = find_drivers(engine_environment(), root=patient.root)
    for driver in drivers:
        if driver.problem:
            yield warning("devices", driver.problem, "see docs/configuration.md#devices")
            return
    failures = read_record(patient.paths.device_failures, list[_Failure]) or []
    if failures:
        last = failures[-1]
        remedy = "update the driver; `runed install --reset` lets it be tried again"
        yield warning("devices", f"a device failed at {last.at}, and is not used since then: {last.reason}", remedy)
        return
    usable = [f"{driver.accelerator} {driver.version}".strip() for driver in drivers if driver.has_device]
    yield ok("devices", ", ".join(usable) or "none but the processors")


def hashes(patient: Patient) -> Iterator[Finding]:
    """Check the hashes of all models that were downloaded or made."""
    installed = read_record(patient.paths.installed, Installed)
    count = 0
    for name, record in (installed.models if installed else {}).items():
        path = patient.paths.model(name)
        if not path.is_file():
            continue
        if path.stat().st_size > 200 * 1000**2:
            patient.announce(f"computing the hash of {path.name}")
        if asyncio.run(sha256_of(path)) != record.sha256:
            remedy = f"run `runed rm {name}` and `runed pull {name}`; if it happens again, check the disk"
            yield failed("hashes", f"{path} was changed, or the disk is broken", remedy)
            return
        count += 1
    yield ok("hashes", f"{count} models are as they were installed" if count else "there is no model of the manifest")
