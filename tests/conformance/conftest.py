"""A fixture with the drivers, built once for all processes of a test run."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.conformance.drivers import Drivers


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Drivers:
    """The conformance drivers of all languages."""
    folder = tmp_path_factory.getbasetemp().parent / f"drivers-{testrun_uid}"
    folder.mkdir(exist_ok=True)
    built = folder / "built"
    with Path(folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            Drivers(folder).build()
            built.touch()
    return Drivers(folder)
