"""README.md on a package index: its links lead to pages of the site, or to files of the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tools.readme import absolute
from tools.site import gather, relinked

ROOT = Path(__file__).resolve().parents[2]
SITE, SOURCE = "https://runed.dev/docs", "https://runed.dev/source"


def test_addresses_are_those_of_the_project() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert (urls["Documentation"], urls["Source"]) == (SITE, SOURCE)


@pytest.mark.parametrize(
    ("link", "address"),
    [
        ("docs/clients.md#go", f"{SITE}/clients/#go"),
        ("docs/index.md", f"{SITE}/"),
        ("docs/decisions/README.md", f"{SITE}/decisions/"),
        ("docs/session.svg", f"{SITE}/session.svg"),
        ("SECURITY.md", f"{SOURCE}/SECURITY.md"),
        ("https://example.org/x", "https://example.org/x"),
        ("#more", "#more"),
    ],
)
def test_a_path_becomes_an_address(link: str, address: str) -> None:
    assert absolute(f"see [this]({link}), then", site=SITE, source=SOURCE) == f"see [this]({address}), then"


def test_every_link_of_the_page_leads_somewhere(tmp_path: Path) -> None:
    gather(ROOT, tmp_path)
    links = re.findall(r"\]\(([^)#]+)", absolute((ROOT / "README.md").read_text(), site=SITE, source=SOURCE))
    assert len(links) > 20
    for link in links:
        if link.startswith(SOURCE):
            assert (ROOT / link.removeprefix(f"{SOURCE}/")).exists(), link
        elif link.startswith(SITE):
            place = tmp_path / link.removeprefix(f"{SITE}/")
            assert place.is_file() or place.with_suffix(".md").is_file() or (place / "index.md").is_file(), link
        else:
            assert link.startswith("https://"), link


def test_the_page_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60


def test_links_of_the_site_lead_to_its_pages_or_to_the_source() -> None:
    places = {"docs/a.md": "a.md", "docs/decisions/README.md": "decisions/index.md", "SECURITY.md": "security.md"}
    page = (
        "[a](../a.md#b) [s](../../SECURITY.md) [c](../../runed/x.py) [w](https://w/x)\n```\n[a](../../runed/x.py)\n```\n[e](#f)"
    )
    assert relinked(page, "docs/decisions/README.md", places) == (
        f"[a](../a.md#b) [s](../security.md) [c]({SOURCE}/runed/x.py) [w](https://w/x)\n"
        "```\n[a](../../runed/x.py)\n```\n[e](#f)"
    )
