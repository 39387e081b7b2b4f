"""The engine gets as many threads as the machine lets it run. More threads would only wait for each other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runed.backends.cores import usable_cores

AVAILABLE = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def membership(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "membership"
    path.write_text(text)
    return path


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(cgroups=tmp_path / "none", membership=tmp_path / "none") == AVAILABLE


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", AVAILABLE),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("1000000 1000", AVAILABLE),
        ("nonsense", AVAILABLE),
    ],
)
def test_quota_of_a_container_counts(tmp_path: Path, groups: Path, limit: str, cores: int) -> None:
    write(groups / "app", cpu__max=f"{limit}\n")
    assert usable_cores(cgroups=groups, membership=membership(tmp_path, "0::/app\n")) == cores


def test_quota_that_is_not_whole_is_rounded_up(tmp_path: Path, groups: Path) -> None:
    write(groups / "app", cpu__max="110000 100000\n")
    assert usable_cores(cgroups=groups, membership=membership(tmp_path, "0::/app\n")) == min(2, AVAILABLE)


def test_quota_of_an_outer_group_counts(tmp_path: Path, groups: Path) -> None:
    write(groups / "outer", cpu__max="100000 100000\n")
    write(groups / "outer" / "inner", cpu__max="max 100000\n")
    assert usable_cores(cgroups=groups, membership=membership(tmp_path, "0::/outer/inner\n")) == 1


def test_quota_of_version_1_counts(tmp_path: Path, groups: Path) -> None:
    write(groups / "cpu" / "app", cpu__cfs_quota_us="100000\n", cpu__cfs_period_us="100000\n")
    lines = "5:memory:/app\n4:cpu,cpuacct:/app\n"
    assert usable_cores(cgroups=groups, membership=membership(tmp_path, lines)) == 1


def test_group_of_the_host_that_a_container_does_not_see_falls_back_to_its_own(tmp_path: Path, groups: Path) -> None:
    write(groups, cpu__max="100000 100000\n")
    assert usable_cores(cgroups=groups, membership=membership(tmp_path, "0::/docker/0123\n")) == 1
