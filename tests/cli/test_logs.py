"""`runed logs` shows exactly the end of a log, and follows it through rotations."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from runed.cli.logs import seek_last_lines
from tests.cli.support import Cli, interrupt


@pytest.fixture
def bare(home: Path) -> Cli:
    cli = Cli(home)
    cli.paths.logs.mkdir()
    return cli


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64 * 1024])
@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"\n\n", b"a\nbb\n\nccc\nd\n", b"a\nbb\n\nccc\nd"])
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 5, 100])
def test_last_lines_are_exact_wherever_blocks_end(block: int, data: bytes, lines: int) -> None:
    file = io.BytesIO(data)
    seek_last_lines(file, lines, block_size=block)
    assert file.read() == b"".join(data.splitlines(keepends=True)[-lines:] if lines else [])


def test_missing_log_is_told_with_its_path(bare: Cli) -> None:
    done = bare.run("logs")
    assert (done.returncode, done.stdout) == (1, "")
    assert str(bare.paths.daemon_log) in done.stderr


def test_engine_log_is_another_file(bare: Cli) -> None:
    bare.paths.daemon_log.write_text("daemon\n")
    bare.paths.engine_log.write_text("engine\n")
    assert bare.run("logs").stdout == "daemon\n"
    assert bare.run("logs", "--engine").stdout == "engine\n"


def test_log_of_the_engine_that_wrote_last_is_shown(bare: Cli) -> None:
    bare.paths.engine_log.write_text("llama-server\n")
    bare.paths.onnx_log.write_text("ONNX Runtime\n")
    os.utime(bare.paths.onnx_log, (1e9, 1e9))
    assert bare.run("logs", "--engine").stdout == "llama-server\n"
    os.utime(bare.paths.onnx_log)
    os.utime(bare.paths.engine_log, (1e9, 1e9))
    assert bare.run("logs", "--engine").stdout == "ONNX Runtime\n"


def test_log_that_is_not_utf8_is_shown_as_it_is(bare: Cli) -> None:
    bare.paths.engine_log.write_bytes(b"\xff\xfe\n")
    process = bare.start("logs", "--engine")
    assert process.communicate(timeout=30)[0] == b"\xff\xfe\n"


def test_follow_survives_a_rotation_and_ends_with_ctrl_c(bare: Cli) -> None:
    log = bare.paths.daemon_log
    process = bare.start("logs", "-f", "-n", "1")
    assert process.stdout is not None
    log.write_text("one\ntwo\n")
    shown = b""

    def read_until(line: bytes) -> None:
        nonlocal shown
        assert process.stdout is not None
        while not shown.endswith(line):
            data = process.stdout.readline()
            assert data, shown
            shown += data

    # If the log did not exist when the command began, all of it is new. Otherwise only its last line is wanted.
    read_until(b"two\n")
    with log.open("a") as file:
        file.write("three\n")
        file.flush()
        read_until(b"three\n")
        log.rename(log.with_suffix(".1"))
        file.write("four\n")
    log.write_text("five\n")
    read_until(b"four\nfive\n")
    log.write_text("6\n")
    read_until(b"6\n")
    code, rest, errors = interrupt(process)
    assert (code, rest, errors) == (130, "", "")


def test_follow_waits_for_a_log_that_is_not_there_yet(bare: Cli) -> None:
    process = bare.start("logs", "-f")
    bare.paths.daemon_log.write_text("first\n")
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    assert interrupt(process)[0] == 130


@pytest.mark.parametrize("options", [(), ("--follow",), ("--engine",)])
def test_a_pipe_in_the_place_of_a_log_is_refused(bare: Cli, options: tuple[str, ...]) -> None:
    """Its opening would wait for ever."""
    os.mkfifo(bare.paths.engine_log if "--engine" in options else bare.paths.daemon_log)
    done = bare.run("logs", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Not a regular file" in done.stderr
