"""The links of the pages lead to files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "clients/*/*.md", "gen/*/*.md")
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", without_code((ROOT / page).read_text()))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_anchors_are_headings(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", (ROOT / page).read_text())
    targets = [((ROOT / page).parent / path if path else ROOT / page, anchor) for path, anchor in links]
    assert [anchor for path, anchor in targets if path.suffix == ".md" and anchor not in anchors(path.read_text())] == []


def without_code(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that hosts of repositories give the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_text_lead_to_files(page: str) -> None:
    paths = re.findall(r"`((?:[a-z_.]+/)*[a-z_]+(?:\.py|/))`", (ROOT / page).read_text())
    rooms = {path.partition("/")[0] for path in paths if (ROOT / "runed" / path.partition("/")[0]).exists()}
    candidates = [path for path in paths if path.partition("/")[0] in rooms or path.startswith(("runed/", "tests/", "tools/"))]
    assert [path for path in candidates if not (ROOT / path).exists() and not (ROOT / "runed" / path).exists()] == []


def test_index_lists_every_decision_in_order() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert re.findall(r"\]\((.+)\)", (folder / "README.md").read_text()) == files
    assert len({name[:4] for name in files}) == len(files)  # a removed decision leaves a gap
    titles = [(folder / name).read_text().splitlines()[0].partition(". ")[2] for name in files]
    assert [
        row.split(" | ")[2].removesuffix(" |") for row in (folder / "README.md").read_text().splitlines()[-len(files) :]
    ] == titles
