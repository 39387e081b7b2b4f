"""Give README.md to a package index with links that work there. hatchling runs this when it builds the package.

In the repository, the links of README.md are paths. A package index shows the page without the repository, so they become
addresses of the site or of the source.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")


class Readme(MetadataHookInterface):
    """Sets `readme` of the project."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the page to the metadata, with the links of its project's URLs."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        urls = metadata["urls"]
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, site=urls["Documentation"], source=urls["Source"]),
        }


def absolute(text: str, *, site: str, source: str) -> str:
    """Return a page of the root with addresses in the place of paths.

    Args:
        text: The page.
        site: The address of the site, which has each page of docs/ as a folder, and its pictures.
        source: The address of the repository.
    """

    def address(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        if not path.startswith("docs/"):
            return f"]({source}/{path}{anchor})"
        page = path.removeprefix("docs/").removesuffix("README.md").removesuffix("index.md")
        folder = f"{page.removesuffix('.md')}/" if page.endswith(".md") else page
        return f"]({site}/{folder}{anchor})"

    return _LINK.sub(address, text)
