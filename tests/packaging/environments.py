"""Wheels, and environments that have nothing but them and what they require."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build a distribution.

    Returns:
        Its wheel.
    """
    argv = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(folder), str(source)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def environment(folder: Path, *wheels: Path) -> Path:
    """Make an environment that has wheels and their declared requirements only.

    Returns:
        Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *map(str, wheels)], check=True, timeout=60)
    site_packages = next((folder / "lib").glob("python3.*")) / "site-packages"
    here = {"runed", "runed-client"}
    for name in _closure([text for wheel in wheels for text in read_metadata(wheel).get_all("Requires-Dist", [])]) - here:
        _link_distribution(metadata.distribution(name), site_packages)
    return python


def read_metadata(wheel: Path) -> Message:
    """Read the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def _closure(requirements: list[str]) -> set[str]:
    """Return the names of all distributions that an installer would add for these requirements."""
    names: set[str] = set()
    pending = list(requirements)
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
        )
        if wanted and name not in names:
            names.add(name)
            pending.extend([] if name == "runed-client" else metadata.requires(name) or [])
    return names


def _link_distribution(distribution: metadata.Distribution, site_packages: Path) -> None:
    """Link an installed distribution into another environment. This replaces an installation, without network and time."""
    for file in set(distribution.files or []):  # numpy 2.0 lists some files twice
        source = Path(str(distribution.locate_file(file)))
        if ".." not in file.parts and source.exists():
            target = site_packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
