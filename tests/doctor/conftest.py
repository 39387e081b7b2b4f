"""A home to examine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runed.doctor.checks import Check
from runed.doctor.finding import Finding, Patient
from runed.paths import Paths
from runed.settings import load_settings


@pytest.fixture
def patient(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Patient]:
    """Make a patient with the settings of some variables. Other arguments are those of `Patient`."""

    def make(environ: dict[str, str] | None = None, **facts: Any) -> Patient:  # noqa: ANN401 # those of `Patient`
        settings = load_settings(home=home, environ=environ or {})
        return Patient(settings, Paths(home), **facts)

    return make


def states(check: Check, patient: Patient) -> list[str]:
    """Return the states of all findings of a check."""
    return [finding.state.value for finding in check(patient)]


def only(check: Check, patient: Patient) -> Finding:
    """Return the only finding of a check. A remedy is there if and only if something is wrong."""
    [finding] = check(patient)
    assert bool(finding.remedy) == (finding.state.value != "ok")
    return finding


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount an empty file system of its own at a directory, or skip the test where that is forbidden."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this user may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
