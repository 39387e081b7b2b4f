"""The checks of the machine, each with a machine that passes and one that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.doctor import machine
from runed.doctor.finding import Patient
from runed.lifecycle.asking import Info
from runed.paths import Paths
from tests.doctor.conftest import mounted, only, states

Make = Callable[..., Patient]


def write(root: Path, **files: str) -> Path:
    """Write files of a machine; "__" in a name stands for "/"."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_proc(patient: Make, tmp_path: Path) -> None:
    assert only(machine.proc, patient()).state.value == "ok"
    found = only(machine.proc, patient(root=tmp_path))
    assert found.state.value == "failed"
    assert "mount -t proc" in found.remedy


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.8.0-generic", "ok"),
        ("5.15.90.1-microsoft-standard-WSL2", "ok"),
        ("4.4.0-19041-Microsoft", "failed"),
    ],
)
def test_wsl(patient: Make, tmp_path: Path, release: str, state: str) -> None:
    root = write(tmp_path, proc__sys__kernel__osrelease=release + "\n")
    assert only(machine.wsl, patient(root=root)).state.value == state


@pytest.mark.parametrize(("kind", "state"), [("ext4", "ok"), ("tmpfs", "ok"), ("9p", "warning"), ("nfs4", "warning")])
def test_the_file_system_of_the_home(patient: Make, tmp_path: Path, kind: str, state: str) -> None:
    subject = patient(root=tmp_path)
    home = subject.paths.home.resolve()
    write(tmp_path, proc__self__mounts=f"/dev/a / ext2 rw 0 0\nshare {home} {kind} rw 0 0\nother {home}x nfs rw 0 0\n")
    first = next(machine.file_system(subject))
    assert first.state.value == state
    assert kind in first.detail


def test_noexec(patient: Make) -> None:
    assert states(machine.file_system, patient())[-1] == "ok"
    subject = patient()
    with mounted(subject.paths.home, "noexec", "mode=0700"):
        found = list(machine.file_system(subject))[-1]
    assert found.state.value == "failed"
    assert "mounted noexec" in found.detail
    assert str(subject.paths.home) in found.detail


def test_disk(patient: Make) -> None:
    assert only(machine.disk, patient()).state.value == "ok"
    subject = patient()
    with mounted(subject.paths.home, "size=1m", "mode=0700"):
        found = only(machine.disk, subject)
        assert (found.state.value, "runed rm" in found.remedy) == ("failed", True)
    with mounted(subject.paths.home, "size=500m", "mode=0700"):
        assert only(machine.disk, subject).state.value == "warning"
        subject.paths.models.mkdir()
        (subject.paths.models / "small.gguf").write_bytes(b"x")
        assert only(machine.disk, subject).state.value == "ok"
    with mounted(subject.paths.home, "size=500m", "nr_inodes=1", "mode=0700"):
        assert "no room for more files" in only(machine.disk, subject).detail


def test_memory(patient: Make, tmp_path: Path) -> None:
    assert only(machine.memory, patient()).state.value == "ok"
    root = write(tmp_path, proc__self__cgroup="0::/box\n", sys__fs__cgroup__box__memory_max="", proc__x="")
    (root / "sys/fs/cgroup/box/memory.max").write_text("100000000\n")
    found = only(machine.memory, patient(root=root))
    assert found.state.value == "failed"
    assert found.detail == "0.1 GB of 0.1 GB are free"
    (root / "sys/fs/cgroup/box/memory.max").write_text("400000000\n")
    subject = patient(root=root)
    assert only(machine.memory, subject).state.value == "ok"
    subject.paths.models.mkdir()
    with (subject.paths.models / "large.gguf").open("wb") as file:
        file.truncate(600_000_000)  # takes no room
    found = only(machine.memory, subject)
    assert found.state.value == "warning"
    assert "may need 0.8 GB" in found.detail


def test_limits(patient: Make, home: Path) -> None:
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))\n"
        "from pathlib import Path\n"
        "from runed.doctor import machine\n"
        "from runed.doctor.finding import Patient\n"
        "from runed.paths import Paths\n"
        "from runed.settings import load_settings\n"
        "home = Path(sys.argv[1])\n"
        "[found] = machine.limits(Patient(load_settings(home=home, environ={}), Paths(home)))\n"
        "print(found.state.value, found.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, check=True)
    assert done.stdout == "warning at most 500 open files (ulimit -n)\n"
    told = only(machine.limits, patient(info=Info(restrictions=("nice 19: other processes go first",))))
    assert told.detail.startswith("nice 19")


def test_each_kind_of_limit_has_its_own_remedy(patient: Make) -> None:
    hint = "the engine may not be the fastest for this model: ONNX Runtime needs onnx; run `pip install 'runed[onnx]'`"
    told = ("nice 19: other processes go first", "at most 8 MiB of a core (ulimit -c)", "2 of 8 processors", hint)
    nice, ulimit, processors, engine = machine.limits(patient(info=Info(restrictions=told)))
    assert (nice.check, "ordinary priority" in nice.remedy) == ("limits", True)
    assert "limits.conf" in ulimit.remedy
    assert "container" in processors.remedy
    assert (engine.check, engine.detail) == ("engine", hint)
    assert "limits.conf" not in engine.remedy

    alone = list(machine.limits(patient(info=Info(restrictions=(hint,)))))
    assert [(found.check, found.state.value) for found in alone] == [("engine", "warning"), ("limits", "ok")]


def test_clock(patient: Make) -> None:
    subject = patient()
    assert only(machine.clock, subject).state.value == "ok"
    long_ago = only(machine.clock, patient(clock=lambda: 1_000_000_000.0))
    assert (long_ago.state.value, "2001-09-09 01:46:40 UTC" in long_ago.detail) == ("failed", True)
    subject.paths.installed.write_text("{}")
    os.utime(subject.paths.installed, (time.time() + 86400, time.time() + 86400))
    assert only(machine.clock, subject).state.value == "warning"


def test_a_home_that_is_missing_is_judged_by_the_place_above_it(patient: Make) -> None:
    subject = patient()
    below = Patient(subject.settings, Paths(subject.paths.home / "not" / "there"))
    assert below.place == subject.paths.home
    assert only(machine.disk, below).state.value == "ok"
