"""The site is built from the pages, and a link that leads nowhere is an error."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tools.site import PAGES, build, gather

_LOADED = re.compile(r'<(?:(?:script|img|iframe)[^>]* src|link[^>]* rel="(?:stylesheet|icon)"[^>]* href)="(?:https?:)?//')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    gather(ROOT, tmp_path / PAGES)
    return tmp_path


@pytest.mark.slow
def test_the_site_is_complete(folder: Path) -> None:
    assert build(folder) == 0
    site = folder / "build" / "site"
    pages = sorted((folder / PAGES).rglob("*.md"))
    assert len(pages) > 100
    for page in pages:
        place = page.relative_to(folder / PAGES)
        built = site / place.parent / "index.html" if place.name == "index.md" else site / place.with_suffix("") / "index.html"
        assert built.is_file(), place
        html = built.read_text()
        assert "flowchart TB" not in html, "a diagram is text where nothing draws it"
        assert not _LOADED.search(html), "the site works without another host"


@pytest.mark.slow
@pytest.mark.parametrize("link", ["clients.md#no-such-heading", "no-such-page.md", "../../no-such-page.md"])
def test_a_link_that_leads_nowhere_is_an_error(link: str, folder: Path) -> None:
    with (folder / PAGES / "jobs.md").open("a") as page:
        page.write(f"\n[wrong]({link})\n")
    assert build(folder) == 1
