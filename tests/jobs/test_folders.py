"""Directories, globs and URLs: which files they mean, and how a file gets its name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from runed.errors import SettingsError
from runed.jobs.folders import Folder, is_many, locate

NAMES = ["a.jsonl", "b.csv", "sub/c.jsonl", "sub/deep/d.jsonl", "_hidden/e.jsonl", ".git/f.jsonl", "_g.jsonl", "sub/.h.jsonl"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(location: str) -> list[str]:
    folder, patterns = locate(location)
    return [found.name for found in folder.matching(patterns)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jsonl", "b.csv", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("*.jsonl", ["a.jsonl"]),
        ("?.*", ["a.jsonl", "b.csv"]),
        ("[bc].*", ["b.csv"]),
        ("**/*.jsonl", ["a.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("*/*.jsonl", ["sub/c.jsonl"]),
        ("sub/**", ["c.jsonl", "deep/d.jsonl"]),
        ("s*/deep/*", ["sub/deep/d.jsonl"]),
        ("_*/*", ["_hidden/e.jsonl"]),
        ("_g*", ["_g.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("none*", []),
    ],
)
@pytest.mark.parametrize("as_url", [False, True])
def test_files_of_a_pattern(*, tree: Path, pattern: str, expected: list[str], as_url: bool) -> None:
    if as_url and "?" in pattern:
        pytest.skip("a question mark begins the query of a URL")
    location = os.fspath(tree / pattern)
    assert sorted(names(f"file://{location}" if as_url else location)) == expected


def test_relative_paths_begin_at_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names("*.csv") == names("./*.csv") == names("b.csv") == ["b.csv"]
    assert names(".") == names(os.fspath(tree))
    assert names("sub/*") == ["c.jsonl"]


def test_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert names(os.fspath(tmp_path / "a[1].txt")) == ["a[1].txt"]
    assert not is_many(os.fspath(tmp_path / "a[1].txt"))


def test_links_in_a_loop_add_no_files(tree: Path) -> None:
    for number in range(5):
        (tree / f"self{number}").symlink_to(".")
    (tree / "sub" / "deep" / "up").symlink_to("..")
    (tree / "other").symlink_to("sub/deep")
    expected = ["a.jsonl", "b.csv", "other/d.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]
    assert [name for name in names(os.fspath(tree)) if "up/" not in name] == expected
    assert not [name for name in names(os.fspath(tree)) if "self" in name or "deep/up/" in name]


def test_a_directory_behind_a_link_lies_where_the_link_leads(tree: Path) -> None:
    folder = tree / "sub"
    (tree / "link").symlink_to("sub")
    (folder / "within").symlink_to("../_hidden")
    linked, within, beside = (Folder(os.fspath(tree / name)) for name in ("link/out", "sub/within", "sub2"))
    assert linked.lies_in(Folder(os.fspath(folder)), below=True)
    assert Folder(os.fspath(tree / "link")).lies_in(Folder(os.fspath(folder)), below=False)
    assert not beside.lies_in(Folder(os.fspath(folder)), below=True)
    assert not within.lies_in(Folder(os.fspath(folder)), below=True)


def test_what_counts_as_many(tree: Path) -> None:
    assert all(is_many(name) for name in (os.fspath(tree), os.fspath(tree / "*.jsonl"), "s3://bucket/in", "in/*.jsonl"))
    assert not any(is_many(name) for name in (os.fspath(tree / "a.jsonl"), "none.jsonl", "-"))


def test_content_replaces_a_file_whole(tmp_path: Path) -> None:
    folder = Folder(os.fspath(tmp_path / "new" / "out"))
    assert folder.find("sub/a") is None
    assert folder.record("sub/a") is None
    found = folder.put("sub/a", io.BytesIO(b"first"))
    assert (found.name, found.size) == ("sub/a", 5)
    assert found.changed == (tmp_path / "new/out/sub/a").stat().st_mtime_ns
    folder.put("sub/a", io.BytesIO(b"second"))
    assert folder.record("sub/a") == b"second"
    folder.remove("sub/a")
    folder.remove("sub/a")
    assert folder.find("sub/a") is None
    assert list((tmp_path / "new/out/_runed").iterdir()) == []


class Broken(io.BytesIO):
    def read(self, _size: int | None = -1, /) -> bytes:
        raise OSError("the source is gone")


def test_content_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    folder = Folder(os.fspath(tmp_path))
    folder.put("a", io.BytesIO(b"old"))
    with pytest.raises(SettingsError, match="a cannot be used: the source is gone"):
        folder.put("a", Broken())
    assert folder.record("a") == b"old"
    assert list((tmp_path / "_runed").iterdir()) == []


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be used: .*nosuch"),
        ("/no/such/folder", "/no/such/folder cannot be used"),
        ("/no/such/folder/*.csv", "/no/such/folder cannot be used"),
    ],
)
def test_location_that_cannot_be_read_is_named(location: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        names(location)


def test_secrets_of_a_url_are_not_shown() -> None:
    folder = Folder("s3://key:secret@bucket/in?region=us-east-1&endpoint_override=http://127.0.0.1:1")
    assert folder.shown == "s3://bucket/in"
    assert folder.local is None
