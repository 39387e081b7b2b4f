"""The properties that a process inherits from its parent.

A daemon outlives the process that started it, and serves others. So it gives up what was meant for that process, such as a low
priority, and tells what it cannot give up.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_UNLIMITED = ("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_MEMLOCK")
"""Limits that would end or hinder the daemon or the engine. Not every system has each of them."""

_MACOS_OPEN_FILES = 10_240
"""The most open files that macOS allows, although its hard limit says more."""

_LEAST_STACK = 8 * 1024 * 1024
"""Bytes of the stack of a thread that the engine is made for."""

_FEW_FILES = 1024
"""Open files below which the limit is worth telling."""

_LIMITS = {
    "RLIMIT_CPU": ("{} seconds of processor time in all (ulimit -t)", 1),
    "RLIMIT_FSIZE": ("files of at most {} MiB (ulimit -f)", 1024 * 1024),
    "RLIMIT_AS": ("at most {} MiB of address space (ulimit -v)", 1024 * 1024),
    "RLIMIT_DATA": ("at most {} MiB of data (ulimit -d)", 1024 * 1024),
}
"""Words for a limit, and the bytes or seconds of its unit."""

_CGROUPS = Path("/sys/fs/cgroup")

_OOM_SCORE = Path("/proc/self/oom_score_adj")


def reset() -> None:
    """Give up the signal mask, ignored signals, priorities, processors and resource limits of the parent, as far as allowed.

    Must be called before this process has other threads: on Linux, some of these belong to a thread.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        # Python itself ignores these two, and turns them into errors.
        if number not in {signal.SIGPIPE, signal.SIGXFSZ} and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with suppress(OSError):  # the kernel leaves those out that a container may not use
            os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
        with suppress(psutil.Error, OSError):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_NONE)
        with suppress(OSError):
            if _readiness_to_be_killed() > 0:
                _OOM_SCORE.write_text("0")
    for name in _UNLIMITED:
        if (limit := getattr(resource, name, None)) is not None:
            hard = resource.getrlimit(limit)[1]
            _set_limit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard))
    files, (stack, most_stack) = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_STACK)
    _set_limit(resource.RLIMIT_NOFILE, (files, files), (_MACOS_OPEN_FILES, files))
    if stack != resource.RLIM_INFINITY and stack < _LEAST_STACK:
        _set_limit(resource.RLIMIT_STACK, (_LEAST_STACK, most_stack), (most_stack, most_stack))


def restrictions() -> list[str]:
    """Return what makes this process slower or smaller than the machine allows, in words for people."""
    return [*_scheduling(), *_limits(), *_cgroup()]


def half_of_memory() -> int:
    """Return half of the bytes of memory that the machine has, or that the control group allows if that is less."""
    return min([psutil.virtual_memory().total, *_memory_limits()]) // 2


def _set_limit(limit: int, *choices: tuple[int, int]) -> None:
    """Set a limit to the first of several pairs, soft and hard, that is allowed."""
    for choice in choices:
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, choice)
            return


def _scheduling() -> Iterator[str]:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > 0:
        yield f"nice {nice}: other processes go first"
    if sys.platform == "linux":
        names = {os.SCHED_BATCH: "batch", os.SCHED_IDLE: "idle"}
        if name := names.get(os.sched_getscheduler(0)):
            yield f"the scheduling policy {name}: other processes go first"
        with suppress(psutil.Error, OSError):
            if psutil.Process().ionice().ioclass == psutil.IOPRIO_CLASS_IDLE:
                yield "the class idle of ionice: other processes read and write first"
        with suppress(OSError):
            if (score := _readiness_to_be_killed()) > 0:
                yield f"oom_score_adj {score}: killed before others if memory runs out"
        allowed, present = len(os.sched_getaffinity(0)), os.cpu_count() or 0
        if allowed < present:
            yield f"{allowed} of {present} processors"


def _readiness_to_be_killed() -> int:
    return int(_OOM_SCORE.read_text())


def _limits() -> Iterator[str]:
    for name, (words, unit) in _LIMITS.items():
        if (limit := getattr(resource, name, None)) is not None:
            soft = resource.getrlimit(limit)[0]
            if soft != resource.RLIM_INFINITY:
                yield words.format(f"{soft // unit:,}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield f"at most {files} open files (ulimit -n)"


def _cgroup() -> Iterator[str]:
    """Yield the tightest limits of the control group and those above it, on Linux with cgroup v2."""
    with suppress(OSError):
        own = _own_cgroup()
        processors: list[float] = []
        for group in (_CGROUPS / own, *(_CGROUPS / own).parents):
            with suppress(OSError, ValueError):  # "max" is no number, and the topmost group has no limits
                quota, period = (group / "cpu.max").read_text().split()
                processors.append(int(quota) / int(period))
        if memory := _memory_limits():
            yield f"at most {min(memory) // 1024**2:,} MiB of memory (cgroup /{own})"
        if processors:
            yield f"at most {min(processors):g} processors (cgroup /{own})"


def _own_cgroup() -> str:
    return Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()


def _memory_limits() -> list[int]:
    """Return the bytes of memory that the control group and those above it allow, as far as they bound it."""
    limits: list[int] = []
    with suppress(OSError):
        own = _CGROUPS / _own_cgroup()
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):  # as in `_cgroup`
                limits.append(int((group / "memory.max").read_text()))
    return limits
