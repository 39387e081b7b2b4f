"""The partial file of a download, the sidecar beside it that names the whole file, and the file of a fresh start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from runed.files import make_way, open_regular


def partial_path(target: Path) -> Path:
    """Return the path of the partial file."""
    return target.with_name(f"{target.name}.partial")


def sidecar_path(target: Path) -> Path:
    """Return the path of the sidecar."""
    return target.with_name(f"{target.name}.partial.json")


def fresh_path(target: Path) -> Path:
    """Return the path of a download that has begun anew, while the partial file is kept."""
    return target.with_name(f"{target.name}.partial.new")


def open_partial(path: Path) -> BinaryIO:
    """Open a partial file to read and write it. Make it if it is missing, or if something else is in its place."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    make_way(path)
    try:
        descriptor = open_regular(path, flags)
    except OSError:  # a pipe, a link, or a file that may not be read
        path.unlink(missing_ok=True)
        descriptor = open_regular(path, flags)
    return os.fdopen(descriptor, "r+b")


def partial_size(target: Path) -> int:
    """Return the bytes of the partial file; 0 if there is none."""
    try:
        return partial_path(target).lstat().st_size
    except OSError:
        return 0


def discard_partial(target: Path) -> None:
    """Remove the partial file and the sidecar."""
    partial_path(target).unlink(missing_ok=True)
    sidecar_path(target).unlink(missing_ok=True)
