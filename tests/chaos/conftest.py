"""A fixture with the drivers of the languages that chaos uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import build_drivers
from tests.conformance.drivers import Drivers


@pytest.fixture
def drivers(tmp_path: Path) -> Drivers:
    """The conformance drivers of Python and Go."""
    return build_drivers(tmp_path)
