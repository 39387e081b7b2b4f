"""`runed logs`: show the end of a log, and follow it."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runed.cli.boundary import ExitCode, complain
from runed.cli.home_alone import load_home
from runed.cli.options import whole_number
from runed.errors import printable_bytes
from runed.files import open_regular
from runed.paths import Paths

POLL_SECONDS = 0.2
"""Seconds between two looks at a log that is followed."""

_BLOCK = 64 * 1024
"""Bytes that are read at once."""

DESCRIPTION = """\
Show the end of the log of the daemon that clients start. Each line is a JSON
object, so `runed logs | jq .message` works. A daemon that runs in the
foreground logs to its own standard error instead.
"""

EPILOG = """\
examples:
  runed logs -n 200
  runed logs -f              keep showing new lines, until Ctrl-C
  runed logs --engine        the log of the engine
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("-n", "--lines", type=whole_number, default=50, metavar="N", help="how many lines (default: 50)")
    parser.add_argument("-f", "--follow", action="store_true", help="keep showing new lines, across rotations too")
    parser.add_argument("--engine", action="store_true", help="the log of the engine instead of the daemon's")


def run(arguments: argparse.Namespace) -> int:
    """Print the end of the log, and follow it if asked to."""
    paths = Paths(load_home().home)
    log = _engine_log(paths) if arguments.engine else paths.daemon_log
    if not arguments.follow and not log.exists():
        complain(f"{log} does not exist: no daemon was started by a client yet")
        return ExitCode.FAILED
    out = sys.stdout.buffer
    show = printable_bytes if sys.stdout.isatty() else bytes
    if not arguments.follow:
        with os.fdopen(open_regular(log), "rb") as file:
            seek_last_lines(file, arguments.lines)
            out.write(show(file.read()))
        return ExitCode.OK
    for block in follow(log, arguments.lines):
        out.write(show(block))
        out.flush()
    return ExitCode.OK


def _engine_log(paths: Paths) -> Path:
    """Return the log of the engine that wrote last: `llama-server` or ONNX Runtime."""
    return max((paths.engine_log, paths.onnx_log), key=lambda log: log.stat().st_mtime_ns if log.exists() else 0)


def seek_last_lines(file: BinaryIO, lines: int, *, block_size: int = _BLOCK) -> None:
    """Move to the start of the last `lines` lines of a file. Only its end is read, in blocks of `block_size` bytes."""
    position = file.seek(0, io.SEEK_END)
    if position and lines:
        file.seek(position - 1)
        # If the last line has no end, there is one line more than line ends.
        missing = lines + 1 if file.read(1) == b"\n" else lines
        while position and missing:
            size = min(block_size, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            end = size
            while missing and (end := block.rfind(b"\n", 0, end)) >= 0:
                missing -= 1
                if not missing:
                    position += end + 1
    file.seek(position)


def follow(path: Path, lines: int) -> Iterator[bytes]:
    """Yield the last lines of a log and then, for ever, the lines that are added to it.

    Args:
        path: The log, which need not exist yet. After a rotation, the rest of the old file comes before the new one.
        lines: The number of existing lines to yield first.
    """
    first = True
    while True:
        try:
            file = os.fdopen(open_regular(path), "rb")
        except FileNotFoundError:
            # All lines of a file that appears later are new.
            first = False
            time.sleep(POLL_SECONDS)
            continue
        with file:
            if first:
                seek_last_lines(file, lines)
                first = False
            while True:
                # Checked before reading, so that all lines from before a rotation are read below.
                rotated = _is_replaced(path, file)
                while block := file.read(_BLOCK):
                    yield block
                if rotated:
                    break
                time.sleep(POLL_SECONDS)
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)


def _is_replaced(path: Path, file: BinaryIO) -> bool:
    try:
        info = path.stat()
    except FileNotFoundError:
        return True
    return not os.path.samestat(info, os.fstat(file.fileno()))
