"""The output and the record of a child."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from runed.backends.engine.process import ChildProcess, OutputLog, reap_orphan
from tests.bad_files import BAD_FILES, put_bad_file
from tests.support import wait_until


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_anything_in_the_place_of_the_record_counts_as_missing(tmp_path: Path, kind: str) -> None:
    record = tmp_path / "engine.json"
    put_bad_file(kind, record)
    reap_orphan(record)
    argv, output = [sys.executable, "-c", ""], OutputLog(tmp_path / "log")
    child = await ChildProcess.spawn(argv, env={}, output=output, record=record, leftovers=[])
    assert await child.exited == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
async def test_a_record_that_does_not_fit_on_the_disk_is_named(tmp_path: Path) -> None:
    record = tmp_path / "engine.json"
    record.symlink_to("/dev/full")
    argv, output = [sys.executable, "-c", ""], OutputLog(tmp_path / "log")
    with pytest.raises(OSError, match="No space left") as caught:
        await ChildProcess.spawn(argv, env={}, output=output, record=record, leftovers=[])
    assert caught.value.filename == str(record)


HANDLED = """
import ctypes
libc = ctypes.CDLL(None)
libc.signal(signal.SIGTERM, ctypes.cast(libc.pause, ctypes.c_void_p))
"""
"""A program whose handler of SIGTERM never ends."""


async def start(tmp_path: Path, program: str) -> ChildProcess:
    """Start a child that runs a program and then waits for signals."""
    output = OutputLog(tmp_path / "log")
    argv = [sys.executable, "-c", f"import signal\n{program}\nprint('begun', flush=True)\nwhile True: signal.pause()"]
    child = await ChildProcess.spawn(argv, env={}, output=output, record=tmp_path / "engine.json", leftovers=[])
    await asyncio.to_thread(wait_until, lambda: output.written, what="the start of the child")
    await asyncio.sleep(0.1)  # until it waits for a signal
    return child


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell that a handler runs")
@pytest.mark.parametrize(
    ("program", "sent", "is_ending"),
    [
        pytest.param(HANDLED, signal.SIGTERM, True, id="in its handler"),
        pytest.param(HANDLED, signal.SIGWINCH, False, id="has a handler"),
        pytest.param("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})", signal.SIGTERM, False, id="blocks it"),
        pytest.param(
            f"{HANDLED}signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())", signal.SIGTERM, False, id="blocks all"
        ),
    ],
)
async def test_child_is_ending_while_it_handles_a_signal(
    tmp_path: Path, program: str, sent: signal.Signals, *, is_ending: bool
) -> None:
    child = await start(tmp_path, program)
    try:
        os.kill(child.pid, sent)
        await asyncio.sleep(0.1)
        assert not child.exited.done()
        assert child.is_ending is is_ending
    finally:
        await child.kill()
    assert not child.is_ending


async def test_child_that_inherited_the_block_of_a_signal_is_not_ending(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        child = await start(tmp_path, HANDLED)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        assert not child.is_ending
    finally:
        await child.kill()


def test_names_that_an_engine_tells_cannot_steer_the_terminal(tmp_path: Path) -> None:
    output = OutputLog(tmp_path / "log")
    output.write("name = \x1b]0;x\x07 \x9b2J\r é\tend\n".encode())
    assert (tmp_path / "log").read_text() == "name = ?]0;x? ?2J? é\tend\n"
    assert output.last_words() == "; its last words: name = ?]0;x? ?2J? é\tend"
