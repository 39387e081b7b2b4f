"""Packages that only some users need, and the command that installs them."""

from __future__ import annotations

import importlib
import json
import shlex
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_DISTRIBUTIONS = ("runed", "runed-client")
"""The distributions of this code, the one with more extras first."""


@cache
def install_command(extra: str) -> str:
    """Return the command that installs an extra beside this runed, such as "pip install 'runed[onnx]'".

    A runed that was installed from a folder or a file is named by its path: its name alone would install what a package index
    has under this name.

    Args:
        extra: The extra.
    """
    return f"pip install {shlex.quote(f'{_installed_from()}[{extra}]')}"


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
        raise missing(str(error.name), extra) from error


def missing(package: str, extra: str) -> ImportError:
    """Return the error about a package that is needed and not installed.

    Args:
        package: Its name.
        extra: The extra of runed that installs it.
    """
    return ImportError(f"{package} is not installed; run: {install_command(extra)}")


def _installed_from() -> str:
    """Return the path that pip installed this runed from, as PEP 610 records it; the name if there is no such path."""
    for name in _DISTRIBUTIONS:
        try:
            record = Distribution.from_name(name).read_text("direct_url.json")
        except PackageNotFoundError:
            continue
        parts = urlsplit(json.loads(record)["url"]) if record else None
        path = url2pathname(parts.path) if parts and parts.scheme == "file" else ""
        return path if path and Path(path).exists() else name
    return _DISTRIBUTIONS[0]
