"""The recipes of docs/recipes.md, with the packages that they name.

These tests run in a lane of their own, `make test-recipes`, since the packages are many and hold others back.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder on their lane. The packages have warnings of their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.recipes)
