"""Fixtures with homes in which `runed` is a small program. It speaks the real contract and answers as a test arranges."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support import process_gone, short_home, wait_until

FAKES = Path(__file__).resolve().parent.parent / "fakes"

Arrange = Callable[..., Path]


@pytest.fixture(scope="session")
def forks() -> Iterator[Path]:
    """The socket of a process that starts fake services by forks of itself."""
    directory = short_home()
    path = directory / "forks"
    command = [sys.executable, str(FAKES / "fake_service.py"), "forks", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path
        process.communicate()
    shutil.rmtree(directory)


@pytest.fixture
def arrange(home: Path, forks: Path) -> Iterator[Arrange]:
    """Make the test's home with a fake service of the given options. End all its daemons afterwards."""
    yield partial(_arrange, home, forks)
    _end_all(home)


@pytest.fixture(scope="session")
def shared(forks: Path) -> Iterator[Path]:
    """A home with a fake service with default options, for tests that do not change it."""
    home = short_home()
    yield _arrange(home, forks)
    _end_all(home)
    shutil.rmtree(home)


def _arrange(home: Path, forks: Path, **options: object) -> Path:
    script = home / "fake-runed"
    command = shlex.join([sys.executable, "-IS", str(FAKES / "hand_over.py"), str(forks), json.dumps(options)])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    (home / "config.json").write_text(json.dumps({"version": 1, "runed_binary": str(script)}))
    return home


def _end_all(home: Path) -> None:
    for pid in pids(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(partial(process_gone, pid), what="the end of a fake service")


def pids(home: Path) -> list[int]:
    """Return the process ids of all daemons that served a home, in the order of their starts."""
    path = home / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(home: Path) -> list[str]:
    """Return the events that the daemons of a home noted."""
    path = home / "events"
    return path.read_text().splitlines() if path.exists() else []


def live_descriptors() -> set[str]:
    """Return the numbers of this process's open descriptors."""
    return {link.name for link in Path("/proc/self/fd").iterdir() if link.exists()}
