"""The flags of the engine's build on a machine, and the key of its kept wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import engine

X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: fpu avx2 avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\n"


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [(X86, {"fpu", "avx2", "avx512f"}), (ARM, {"fp", "asimd", "sve"}), ("processor: 0\n", set())],
)
def test_features_are_read_on_intel_and_arm(cpuinfo: str, features: set[str]) -> None:
    assert engine.cpu_features(cpuinfo) == features


def test_an_advertised_amx_is_never_compiled_in() -> None:
    plain = engine.build_flags(frozenset({"avx2"}))
    guarded = engine.build_flags(frozenset({"avx2", "amx_tile"}))

    assert plain == {"CMAKE_ARGS": engine.CMAKE_ARGS}
    assert guarded == plain | {"CFLAGS": engine.NO_AMX, "CXXFLAGS": engine.NO_AMX}


def test_a_wheel_of_another_processor_flag_set_or_compiler_is_not_reused() -> None:
    features, flags = frozenset({"avx2", "fma"}), {"CMAKE_ARGS": "-DX=1"}
    keys = {
        engine.cache_key(features, flags, "gcc 12"),
        engine.cache_key(features | {"avx512f"}, flags, "gcc 12"),
        engine.cache_key(features, flags | {"CFLAGS": engine.NO_AMX}, "gcc 12"),
        engine.cache_key(features, flags, "gcc 13"),
    }

    assert len(keys) == 4
    assert engine.cache_key(frozenset({"fma", "avx2"}), dict(flags), "gcc 12") in keys


def test_every_missing_program_is_told_in_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\n")
    (tmp_path / "cc").chmod(0o755)

    result = subprocess.run(
        [sys.executable, "-m", "tools.engine"],
        cwd=engine.ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert result.returncode == 1
    assert [line.split("`")[1] for line in result.stderr.splitlines()[1:]] == ["c++", "make"]
    assert "apt-get install g++" in result.stderr
