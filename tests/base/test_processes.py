"""The identity of a process, and the way it ended."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runed.processes import ProcessIdentity, SignalMasks, describe_exit, identify, is_alive, program_title, signal_masks_of


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (7, "exited with code 7"),
        (-9, "was ended by SIGKILL"),
        (-63, "was ended by signal 63"),  # a real-time signal, which has no name
    ],
)
def test_every_way_to_end_is_told(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_process_that_got_a_pid_anew_is_another_one() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(ProcessIdentity(me.pid, me.start_time - 60))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel notes the time of the clock")
def test_identity_does_not_change_when_the_clock_is_set() -> None:
    me = identify(os.getpid())
    assert me is not None
    seconds_since_the_machine_started = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < me.start_time <= seconds_since_the_machine_started


def test_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.read()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identify(child.pid) is None
    finally:
        child.communicate()
    assert identify(child.pid) is None


_TRIM = """
from runed.processes import return_large_blocks, resident_bytes, trim_memory
import os
return_large_blocks()
before = resident_bytes(os.getpid())
texts = [bytes(15_000) for _ in range(4000)]
last = bytes(15_000)  # lies behind all others, so that glibc keeps them
del texts
kept = resident_bytes(os.getpid())
trim_memory()
print(kept - before, resident_bytes(os.getpid()) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_freed_memory_goes_back_to_the_kernel() -> None:
    result = subprocess.run([sys.executable, "-c", _TRIM], capture_output=True, text=True, check=True)
    kept, left = map(int, result.stdout.split())
    assert kept > 40 * 2**20
    assert left < 8 * 2**20


def test_signal_masks_are_read() -> None:
    status = b"Name:\tSigBlk:\t1\nSigPnd:\t0000000000000001\nSigBlk:\t0000000000004002\nSigCgt:\t0000000100000001\n"
    blocked, caught = frozenset({signal.SIGINT, signal.SIGTERM}), frozenset({1, 33})
    assert SignalMasks.parse(status) == SignalMasks(blocked, caught)


def test_signal_masks_that_a_sandbox_leaves_out_are_empty() -> None:
    assert SignalMasks.parse(b"Name:\tllama-server\nState:\tS (sleeping)\nThreads:\t7\n") == SignalMasks()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the masks")
def test_signal_masks_of_a_process_are_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert signal_masks_of(process.pid).blocked == signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal_masks_of(process.pid) == SignalMasks()


_PROGRAM = "print(flush=True); input()"


def _title_of(arguments: list[str], cwd: Path) -> str:
    """Return the name of an interpreter with arguments, which runs `_PROGRAM`."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # before, the kernel may not have its arguments yet
        name = program_title(process.pid)
        process.kill()
    return name


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (["app.py", "a text of a user"], " app.py"),
        (["-u", "-P", "app.py", "a text of a user"], " app.py"),
        (["-m", "app", "a text of a user"], " -m app"),
        (["-c", f"{_PROGRAM}  # a text of a user"], ""),
    ],
)
def test_a_program_is_named_without_its_texts(tmp_path: Path, arguments: list[str], title: str) -> None:
    (tmp_path / "app.py").write_text(_PROGRAM)
    name = _title_of(arguments, tmp_path)
    assert name.startswith("python")
    assert name.partition(" ")[2] == title.strip()


def test_a_command_of_runed_is_named_without_its_texts(tmp_path: Path) -> None:
    (tmp_path / "runed").write_text(_PROGRAM)
    assert _title_of(["runed", "embed", "a text of a user"], tmp_path) == "runed embed"
    assert _title_of(["runed", "A text of a user"], tmp_path).endswith(" runed")


@pytest.mark.skipif(sys.platform != "linux", reason="the file system of macOS takes no name that is not UTF-8")
@pytest.mark.parametrize(
    ("script", "title"),
    [
        (b"a\x1b[31m\nstate     OK.py", " a\\x1b[31m\\nstate     OK.py"),
        (b"\xff.py", " \\udcff.py"),
        (b"n" * 252 + b".py", " nnn"),
    ],
)
def test_the_name_of_a_program_is_one_short_line_of_utf_8(tmp_path: Path, script: bytes, title: str) -> None:
    (tmp_path / os.fsdecode(script)).write_text(_PROGRAM)
    name = _title_of([os.fsdecode(script)], tmp_path)
    assert title in name
    assert len(name.encode()) <= 250


def test_a_program_that_is_gone_has_no_name() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert program_title(process.pid) == ""
