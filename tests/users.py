"""Another user beside that of the tests, for tests that run as root."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import clean_environment

OTHER = 64_321
"""The id of the other user, of whom nobody else has files."""

ROOT = Path(__file__).resolve().parent.parent

FAKE = ROOT / "tests" / "fakes" / "other_user.py"

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


def run_as(user: int, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the packages of the tests as another user, which only root can. Skip the test if that user cannot.

    Args:
        user: The user id, which is also the only group id.
        code: The code.
        arguments: The rest of its `sys.argv`.
        environment: Variables besides those of this process.
    """
    places = (ROOT, ROOT / "gen" / "python", *site.getsitepackages())
    # The interpreter of the tests may lie in a directory that only root can enter.
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(PermissionError, FileNotFoundError):
            done = subprocess.run(
                [python, "-c", f"import runed\n{code}", *arguments],
                env=clean_environment(PYTHONPATH=os.pathsep.join(map(str, places)), PYTHONDONTWRITEBYTECODE="1", **environment),
                cwd="/",
                user=user,
                group=user,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if "ModuleNotFoundError" not in done.stderr:
                return done
    pytest.skip("no Python with the packages of the tests can be run by other users")
