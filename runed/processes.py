"""The identity of a process, its memory, and the end of a child with its parent.

The kernel reuses a pid. A pid together with a start time names one process, within one boot and one pid namespace.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from runed.errors import printable

_PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that sets the parent-death signal."""

MAX_PID = 2**31 - 1
"""The largest number that a process id can be. A larger one is an error of some file."""

_CPU_TIME_FIELD = 14
"""The field of /proc/<pid>/stat, counted from 1, with the clock ticks in user mode. Those in kernel mode follow."""

_M_MMAP_THRESHOLD = -3
"""The option of mallopt(3) that sets the size from which on a block has pages of its own."""

_LARGE_BLOCK = 256 * 1024
"""Bytes of a block that has pages of its own. They cost about 0.1 ms, less than the work on so many bytes."""

_START_TIME_FIELD = 22
"""The field of /proc/<pid>/stat, counted from 1, with the start time in clock ticks since the machine's start."""


class ProcessIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """The identity of one process, which no later process has.

    Attributes:
        pid: The process id.
        start_time: The start time in seconds: on Linux since the machine's start, so that setting the clock does not change it;
            on macOS since the epoch, as the kernel noted it then.
        scope: On Linux, the boot of the machine and the pid namespace in which the numbers count. The records of older versions
            have none.
    """

    pid: Annotated[int, msgspec.Meta(ge=1, le=MAX_PID)]
    start_time: float
    scope: str = ""


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a live process; None if no process has that pid. A zombie is no live process."""
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
    """Return whether a process still lives. Another process of the same pid does not count."""
    found = identify(identity.pid)
    return found is not None and found.start_time == identity.start_time and identity.scope in {"", found.scope}


def is_gone(identity: ProcessIdentity) -> bool:
    """Return whether a process is gone, also as a zombie, which keeps the pid until its parent has asked for its end."""
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the pid is another user's now
        return True
    return (found := identify(identity.pid)) is not None and found.start_time != identity.start_time


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process, if it lives; return whether it was sent. On Linux, `scope` must be known."""
    descriptor = -1
    with suppress(OSError, AttributeError):  # an old kernel, another system, or a container that forbids it
        descriptor = os.pidfd_open(identity.pid)
    try:
        if identify(identity.pid) != identity:
            return False
        if descriptor >= 0:  # refers to the process that was just identified, also if it ends now and its pid is reused
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(identity.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def program_names(pid: int) -> set[str]:
    """Return the last parts of the paths on the command line of a process; nothing if it is gone."""
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        return {Path(argument).name for argument in psutil.Process(pid).cmdline()}
    except (psutil.Error, OSError):
        return set()


_INTERPRETERS = ("python", "pypy", "node", "deno", "bun", "ruby", "perl", "sh", "bash", "java")
"""Beginnings of the names of programs that run others."""

_LONGEST_TITLE = 200
"""The most characters of a program that are told."""


def program_title(pid: int) -> str:
    """Return the name of a program for people, such as "python app.py"; "" if the system does not tell it.

    Arguments may be texts of a user. So of all arguments, only the script or the module of an interpreter is told, and the
    command of `runed`. A program chooses its name: it has at most `_LONGEST_TITLE` characters here, and no line ends and bytes
    that are not UTF-8.
    """
    return printable(_title(pid)[:_LONGEST_TITLE])


def _title(pid: int) -> str:
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        process = psutil.Process(pid)
        name, arguments = process.name(), process.cmdline()[1:]
    except (psutil.Error, OSError):
        return ""
    match arguments:
        case [script, command, *_] if Path(script).name == "runed" and re.fullmatch(r"[a-z]+", command):
            return f"runed {command}"
    if not name.startswith(_INTERPRETERS):
        return name
    while len(arguments) > 1 and arguments[0] in {"-P", "-I", "-u", "-B", "-s", "-E"}:
        arguments.pop(0)
    match arguments:
        case ["-m", module, *_] if re.fullmatch(r"[\w.]+", module):
            return f"{name} -m {module}"
        case [script, *_] if not script.startswith("-"):
            return f"{name} {Path(script).name}"
    return name


def is_child(pid: int, parent: ProcessIdentity) -> bool:
    """Return whether a process is a child of another one."""
    if sys.platform == "linux":
        return is_alive(parent) and _stat_on_linux(pid)[1:2] == [b"%d" % parent.pid]
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        return is_alive(parent) and psutil.Process(pid).ppid() == parent.pid
    except psutil.Error:
        return False


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, by a signal such as SIGSTOP or by a debugger. It does nothing then."""
    if sys.platform == "linux":
        return _stat_on_linux(pid)[:1] in ([b"T"], [b"t"])
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _identify_on_linux(pid: int) -> ProcessIdentity | None:
    """Read /proc. psutil's start time is a time of the clock, which moves with every correction of the clock."""
    state, *others = _stat_on_linux(pid) or [b"X"]
    if state in {b"Z", b"X"}:
        return None
    ticks = int(others[_START_TIME_FIELD - 4])
    return ProcessIdentity(pid, ticks / os.sysconf("SC_CLK_TCK"), _scope())


@functools.cache
def boot_id() -> str:
    """Return the name of this boot of the machine; "" if the system does not tell it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # another system, or a sandbox that hides it
        return ""


@functools.cache
def _scope() -> str:
    try:
        return f"{boot_id()}/{Path('/proc/self/ns/pid').stat().st_ino}" if boot_id() else ""
    except OSError:  # a sandbox hides it
        return ""


def _stat_on_linux(pid: int) -> list[bytes]:
    """Return the fields of /proc/<pid>/stat from the third, the state, on; no fields for a process that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The name of the program, field 2, may hold spaces and brackets. The last bracket ends it.
    return stat.rpartition(b")")[2].split()


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a process: its id, its state as a letter of proc(5), and its processor seconds."""

    id: int
    state: str
    seconds: float


def threads_of(pid: int) -> list[Thread]:
    """Return the threads of a process; none if it is gone, and none on other systems than Linux."""
    threads = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            state, *others = (task / "stat").read_bytes().rpartition(b")")[2].split()
            ticks = sum(map(int, others[_CPU_TIME_FIELD - 4 : _CPU_TIME_FIELD - 2]))
            threads.append(Thread(int(task.name), state.decode(), ticks / os.sysconf("SC_CLK_TCK")))
    return threads


@dataclass(frozen=True, slots=True)
class SignalMasks:
    """The numbers of the signals that the main thread of a process blocks, and of those for which it has a handler."""

    blocked: frozenset[int] = frozenset()
    caught: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, status: bytes) -> SignalMasks:
        """Return the masks in the text of /proc/<pid>/status. Some sandboxes leave them out, which is as if they were empty."""
        return cls(_signals(status, b"SigBlk"), _signals(status, b"SigCgt"))


def signal_masks_of(pid: int) -> SignalMasks:
    """Return the masks of a process; empty ones if it is gone, and on other systems than Linux."""
    try:
        return SignalMasks.parse(Path(f"/proc/{pid}/status").read_bytes())
    except OSError:
        return SignalMasks()


def _signals(status: bytes, name: bytes) -> frozenset[int]:
    _, found, rest = status.partition(b"\n" + name + b":")
    mask = int(rest.split(maxsplit=1)[0], 16) if found else 0
    return frozenset(number for number in range(1, mask.bit_length() + 1) if mask >> (number - 1) & 1)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it is gone."""
    if sys.platform == "linux":
        try:
            return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0
    import psutil  # noqa: PLC0415 # as in `identify`

    try:
        memory: Any = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss)


def peak_resident_bytes(pid: int) -> int:
    """Return the most resident memory that a process ever had, in bytes; the present one on other systems than Linux."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        status = b""
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else resident_bytes(pid)


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that lets the kernel kill the child when this process ends, even by `kill -9`. Linux only.

    The kernel sends the signal when the thread that forked ends, so children must be started on the main thread.

    Returns:
        The function; None on other systems.
    """
    if sys.platform != "linux":
        return None
    # All names are looked up before the fork. Between fork and exec, a lock of another thread may be held for ever.
    prctl, kill, getppid, leave, parent = _libc().prctl, signal.SIGKILL.value, os.getppid, os._exit, os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, kill)
        if getppid() != parent:  # the parent died before prctl was called
            leave(1)

    return arrange


def describe_exit(code: int) -> str:
    """Describe the end of a process, for example "exited with code 1" or "was ended by SIGKILL".

    Args:
        code: The exit code of `subprocess`. A negative one is the number of the signal that ended the process.
    """
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal other than the first and the last has no name
        return f"was ended by signal {-code}"


def _libc() -> Any:  # noqa: ANN401 # its functions have no types
    import ctypes  # noqa: PLC0415 # 3 ms that a command which starts nothing does not spend

    return ctypes.CDLL(None)


def return_large_blocks() -> None:
    """Let each freed block of memory of `_LARGE_BLOCK` bytes or more go back to the kernel at once.

    glibc does so at first, but with each such block it raises its limit, up to 32 MiB. Each of its arenas then keeps 64 MiB,
    and many threads have arenas of their own. Other C libraries have no such limit, and nothing is done there.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def release_free_memory() -> None:
    """Return unused memory of this process to the kernel, after a search for objects that only hold each other."""
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Return freed memory of this process to the kernel, in some milliseconds.

    glibc keeps freed memory: tens of MiB after a large batch. Other C libraries have no such call, and nothing is done there.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)
