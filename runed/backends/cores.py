"""Counts the processors that the engine may use. `llama-server` ignores its affinity and the quota of its container."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(*, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Count the processors that this process may use, at least 1. A fractional quota is rounded up.

    Args:
        cgroups: The place where the control groups are mounted (Linux).
        membership: The file that lists the groups of this process.
    """
    # macOS does not bind a process to processors.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroups, membership)
    return max(1, math.ceil(min(available, quota)))


def processors() -> str:
    """Return the kind of the processors, and how many this process may use, as in "AMD EPYC 9B14, 2 cores"."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            name = next(names, "")
    except OSError:  # macOS
        name = ""
    return f"{name or platform.processor() or platform.machine()}, {usable_cores()} cores"


def _cgroup_quota(cgroups: Path, membership: Path) -> float:
    """Return the smallest quota, in processors, of this process's group and of the groups around it; infinity without one."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the group may name a path of the host; then the mount's own root is the container's group.
        root = cgroups / "cpu" if controllers else cgroups
        inner = root / group.lstrip("/")
        for directory in (inner, *inner.parents):
            if not directory.is_relative_to(root):
                break
            quota = min(quota, _read_quota(directory))
    return quota


def _read_quota(directory: Path) -> float:
    """Read the quota of one group: `cpu.max` of version 2, or `cpu.cfs_*` of version 1."""
    try:
        if (unified := directory / "cpu.max").exists():
            limit, period = unified.read_text().split()
        else:
            limit = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        return float(limit) / float(period) if limit != "max" and float(limit) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
