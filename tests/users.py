"""Another user beside that of the tests, for tests that run as root."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER = 64_321
"""The id of the other user, of whom nobody else has files."""

FAKE = Path(__file__).resolve().parent / "fakes" / "other_user.py"

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can run processes as another user")


_LAST = bytes(12_345)
"""Bytes of a number that no request has."""


class Eavesdropper:
    """A process of the other user that listens at the path of a socket."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self._process = process
        self._path = path

    def heard(self) -> list[int]:
        """Return the number of bytes that it got by each connection so far."""
        assert self._process.stdout is not None
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self._path))
            last.sendall(_LAST)
        return [int(line) for line in iter(self._process.stdout.readline, f"{len(_LAST)}\n")]


@contextmanager
def listening_as_other(path: Path) -> Iterator[Eavesdropper]:
    """Let the other user listen at a path, until the end of the block."""
    with subprocess.Popen([sys.executable, FAKE, str(OTHER), "listen", path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.chown(path, os.geteuid(), -1)  # as after a race: the owner of the socket's file shows nothing, the peer does
            yield Eavesdropper(process, path)
        finally:
            process.kill()


@contextmanager
def swapping_as_other(directory: Path) -> Iterator[None]:
    """Let the other user swap a directory with its sibling `.theirs` again and again. Their parent must be that user's."""
    with subprocess.Popen([sys.executable, FAKE, str(OTHER), "swap", directory], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


def answer_to_other(path: Path) -> str:
    """Return what the other user gets from a socket when it asks for Health."""
    done = subprocess.run([sys.executable, FAKE, str(OTHER), "connect", path], stdout=subprocess.PIPE, check=True, timeout=20)
    return done.stdout.decode()
