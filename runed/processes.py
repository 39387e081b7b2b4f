"""Who a process is, and how a child dies with its parent.

A pid alone is reused by the kernel, a pid with its start time is not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

_PR_SET_PDEATHSIG = 1

_START_TIME_FIELD = 22
"""Of /proc/<pid>/stat, counted from 1; in clock ticks since the machine's start."""


class ProcessIdentity(msgspec.Struct, frozen=True):
    """One process for good.

    Attributes:
        pid: The process id.
        start_time: When it started, in seconds: on Linux since the machine's start, so that it stays the same when the clock is
            set; on macOS since the epoch, as the kernel noted it then.
    """

    pid: int
    start_time: float


def identify(pid: int) -> ProcessIdentity | None:
    """Give the identity of a live process, or None if there is none of that pid (a zombie counts as none)."""
    if sys.platform == "linux":
        return _identify_on_linux(pid)
    import psutil  # noqa: PLC0415 # 20 ms that a client which finds a daemon running never spends

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, process.create_time())
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity) -> bool:
    """Tell whether that very process still lives."""
    return identify(identity.pid) == identity


def _identify_on_linux(pid: int) -> ProcessIdentity | None:
    """Read proc(5): psutil's start time is one of the clock, which moves with every correction of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The program's name, field 2, may hold spaces and brackets itself; the last bracket ends it.
    state, *others = stat.rpartition(b")")[2].split()
    if state in {b"Z", b"X"}:
        return None
    ticks = int(others[_START_TIME_FIELD - 4])
    return ProcessIdentity(pid, ticks / os.sysconf("SC_CLK_TCK"))


def resident_bytes(pid: int) -> int:
    """Give the resident memory of a process in bytes, or 0 if it is gone."""
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        memory: Any = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss)


def die_with_parent() -> Callable[[], None] | None:
    """Give a `preexec_fn` for a child that is killed when this process ends, even by `kill -9`; None where there is none such.

    The kernel sends the signal when the thread that forked ends, so children must be started on the main thread. Linux only.
    """
    if sys.platform != "linux":
        return None
    # Everything is looked up before the fork: between fork and exec, another thread's locks may be held for ever.
    prctl, kill, getppid, leave, parent = ctypes.CDLL(None).prctl, signal.SIGKILL.value, os.getppid, os._exit, os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, kill)
        if getppid() != parent:  # it died before the signal was arranged
            leave(1)

    return arrange


def describe_exit(code: int) -> str:
    """Say how a process ended, as "exited with code 1" or "was ended by SIGKILL".

    Args:
        code: The exit code as `subprocess` gives it: negative is the number of the signal that ended it.
    """
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal other than the first and the last has no name
        return f"was ended by signal {-code}"


def release_free_memory() -> None:
    """Hand memory that this process holds but does not use back to the kernel.

    glibc keeps what was freed for later; after a large batch that is tens of MiB. Other C libraries have no such call, and
    nothing is done there.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
