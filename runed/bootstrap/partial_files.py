"""The partial file of a download, and the sidecar beside it that names the whole file."""

from __future__ import annotations

from pathlib import Path


def partial_path(target: Path) -> Path:
    """Return the path of the partial file."""
    return target.with_name(f"{target.name}.partial")


def sidecar_path(target: Path) -> Path:
    """Return the path of the sidecar."""
    return target.with_name(f"{target.name}.partial.json")


def partial_size(target: Path) -> int:
    """Return the bytes of the partial file; 0 if there is none."""
    try:
        return partial_path(target).stat().st_size
    except OSError:
        return 0


def discard_partial(target: Path) -> None:
    """Remove the partial file and the sidecar."""
    partial_path(target).unlink(missing_ok=True)
    sidecar_path(target).unlink(missing_ok=True)
