"""Build the site of the documentation in build/site, as `make docs` does.

The pages are those of docs/, and a few of the root. A link to another page stays one. A link to any other file of the
repository becomes one to the address of the source, since the site has no such file. MkDocs then builds the site, and fails if
a link or an anchor leads nowhere.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = "build/site-pages"
"""The folder of the pages, as in mkdocs.yml."""

OF_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages that hosts of repositories look for in the root."""

SOURCE = "https://runed.dev/source"
"""The address of the repository, as in pyproject.toml."""

_FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2`*$", re.MULTILINE | re.DOTALL)
_DIAGRAM = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def main() -> int:
    """Gather the pages and build the site.

    Returns:
        The exit code of MkDocs.
    """
    gather(ROOT, ROOT / PAGES)
    return build(ROOT)


def build(folder: Path) -> int:
    """Build the site of a folder, which has mkdocs.yml and the pages.

    Returns:
        The exit code of MkDocs.
    """
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    # The theme advertises its successor.
    return subprocess.run(argv, cwd=folder, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False).returncode


def gather(root: Path, target: Path) -> None:
    """Write the pages of the site, and the pictures that they show, into an empty folder.

    Args:
        root: The root of the repository.
        target: The folder. What it held is removed.
    """
    shutil.rmtree(target, ignore_errors=True)
    places = {
        path.relative_to(root).as_posix(): path.relative_to(root / "docs").as_posix()
        for path in sorted((root / "docs").rglob("*"))
        if path.is_file()
    }
    # A site shows the index of a folder under the address of the folder.
    places |= {source: place.replace("README.md", "index.md") for source, place in places.items()}
    places |= {name: name.lower() for name in OF_THE_ROOT}
    for source, place in places.items():
        written = target / place
        written.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            # Hosts of repositories draw diagrams. A site needs a script of another host for that.
            text = _DIAGRAM.sub(f"[See it drawn]({SOURCE}/{source}).", (root / source).read_text())
            written.write_text(relinked(text, source, places))
        else:
            shutil.copyfile(root / source, written)


def relinked(text: str, source: str, places: Mapping[str, str]) -> str:
    """Return a page with the links of the site.

    Args:
        text: The page.
        source: Its path in the repository.
        places: The path in the site of each file of the repository that the site has.
    """
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_relinked(text[end : fence.start()], source, places), fence[0]]
        end = fence.end()
    return "".join([*parts, _relinked(text[end:], source, places)])


def _relinked(prose: str, source: str, places: Mapping[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        anchor = found[3] or ""
        if path in places:
            here = posixpath.dirname(places[source]) or "."
            return f"{found[1]}{posixpath.relpath(places[path], here)}{anchor}{found[4]}"
        if path.startswith("docs/"):  # a page that is missing, of which MkDocs complains
            return found[0]
        return f"{found[1]}{SOURCE}/{path}{anchor}{found[4]}"

    return _LINK.sub(link, prose)


if __name__ == "__main__":
    sys.exit(main())
