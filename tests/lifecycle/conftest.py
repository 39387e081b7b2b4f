"""Fixtures with homes in which `runed` is a small program that behaves or misbehaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runed.paths import Paths
from runed.settings import Settings
from tests.support import process_gone, wait_until

FAKE_DAEMON = Path(__file__).resolve().parent.parent / "fakes" / "fake_daemon.py"


def write_fake(home: Path, behaviour: str, version: str = "0.1.0") -> Path:
    """Write a `runed` that runs the fake daemon with a behaviour and a version."""
    script = home / f"fake-runed-{version}"
    command = shlex.join([sys.executable, str(FAKE_DAEMON), behaviour, version])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    return script


def starts(home: Path) -> list[dict[str, Any]]:
    """Return the notes of each fake daemon that was started in a home."""
    log = home / "starts.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home)


@pytest.fixture
def fake(home: Path) -> Iterator[Callable[..., Settings]]:
    """Make settings with a fake `runed`. End all daemons of the home afterwards."""

    def make(behaviour: str = "serves", version: str = "0.1.0") -> Settings:
        return replace(Settings(home=home), runed_binary=write_fake(home, behaviour, version))

    yield make
    for start in starts(home):
        with suppress(ProcessLookupError):
            os.kill(start["pid"], signal.SIGKILL)
        wait_until(partial(process_gone, start["pid"]), what="the end of a fake daemon")
