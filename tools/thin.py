"""Makes the distribution `runed` of a release from the source archive: what `runed-client` has is left out, and required."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from runed.version import __version__

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "clients" / "python"

CHANGES = {
    'dynamic = ["readme", "version"]\n': f'dynamic = ["readme"]\nversion = "{__version__}"\n',
    '\n[tool.hatch.version]\npath = "runed/version.py"\n': "",
    "\ndependencies = [\n": f'\ndependencies = [\n    "runed-client=={__version__}",\n',
    'packages = ["runed", "gen/python/runed_proto"]': 'packages = ["runed"]',
}
"""What changes in `pyproject.toml`."""


def client_paths() -> list[str]:
    """Return the files and folders that `runed-client` consists of, from the top of the repository."""
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    return [path.removeprefix("../../") for path in included]


def leave_client_out(tree: Path) -> None:
    """Turn an unpacked source archive of the repository, which is whole, into that of the distribution `runed`.

    Args:
        tree: Its folder.

    Raises:
        ValueError: `pyproject.toml` does not have what must change, exactly once each.
    """
    for path in client_paths():
        if (tree / path).is_dir():
            shutil.rmtree(tree / path)
        else:
            (tree / path).unlink()
    project = (tree / "pyproject.toml").read_text()
    for old, new in CHANGES.items():
        if project.count(old) != 1:
            raise ValueError(f"pyproject.toml has {old!r} {project.count(old)} times, and must have it once")
        project = project.replace(old, new)
    (tree / "pyproject.toml").write_text(project)
