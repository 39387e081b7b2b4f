"""Packages that only some users need."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, extra: str) -> Any:  # noqa: ANN401 # these packages are checked where they are installed alone
    """Import a module of an optional package.

    Args:
        module: The module, such as "ray.data".
        extra: The extra of runed that installs it.

    Raises:
        ImportError: The package is not installed; or it lacks a package that it needs.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is not installed; run: pip install "runed[{extra}]"') from error
