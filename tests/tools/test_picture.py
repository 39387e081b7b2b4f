"""The picture of the rooms in docs/architecture.md is up to date with the code."""

from __future__ import annotations

import pytest

from tools import picture


def test_page_shows_the_imports_of_today() -> None:
    page = picture.PAGE.read_text()
    drawn = picture.draw(picture.read_layers(), picture.read_imports())
    assert picture.replace_picture(page, drawn) == page, "the rooms have changed: run `make picture`"
    assert "    scheduling --> backends\n" in page


def test_arrow_that_a_longer_way_implies_is_left_out() -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}
    assert picture.shortest(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}}
    drawn = picture.draw([["a"], ["b"], ["c", "d"], ["x"], ["y"]], imports | {"d": {"x"}, "x": {"y"}})
    assert [line.strip() for line in drawn.splitlines() if " --> " in line] == ["a --> b", "b --> c", "c --> d"]
    assert "| `a` | `b`, `c`, `d` |" in drawn
    assert "| `d` | - |" in drawn


@pytest.mark.parametrize("old", ["", "\nan older picture\n\n"])
def test_only_the_text_between_the_marks_is_replaced(old: str) -> None:
    page = f"above\n{picture.BEGIN}{old}{picture.END}below\n"
    assert picture.replace_picture(page, "new\n") == f"above\n{picture.BEGIN}\nnew\n\n{picture.END}below\n"
