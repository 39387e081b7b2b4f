"""Archives that try to write outside their folder, are broken, or replace a working engine."""

from __future__ import annotations

import resource
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from runed.bootstrap.archive import check_executable, extract, place_program, recover, swap_in
from runed.errors import ArchiveError, DiskSpaceError
from tests.bootstrap.parts import VERSION_SCRIPT, archive, special

GOOD = (("top/llama-server", VERSION_SCRIPT), ("top/lib.so.1", b"library"), special("top/lib.so", tarfile.SYMTYPE, "lib.so.1"))


def unpack(tmp_path: Path, data: bytes) -> Path:
    """Extract into a folder, and check that nothing appears beside it."""
    file, folder = tmp_path / "a.tar.gz", tmp_path / "box" / "out"
    file.write_bytes(data)
    folder.parent.mkdir()
    try:
        extract(file, folder)
    finally:
        assert [path.name for path in folder.parent.iterdir()] == ["out"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "box"]
    return folder


def test_links_inside_survive_as_the_official_archives_need_them(tmp_path: Path) -> None:
    chain = (
        special("top/lib.so.0", tarfile.SYMTYPE, "lib.so"),
        special("top/deep/up.so", tarfile.SYMTYPE, "../lib.so.1"),
        special("top/same", tarfile.LNKTYPE, "top/lib.so.1"),
    )
    folder = unpack(tmp_path, archive(*GOOD, *chain))
    for name in ("lib.so", "lib.so.0", "deep/up.so", "same"):
        assert (folder / "top" / name).read_bytes() == b"library"
    assert (folder / "top" / "lib.so.0").readlink() == Path("lib.so")
    assert check_executable(folder, PurePosixPath("top/llama-server")).is_file()


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x")],
        [("top/../../evil", b"x")],
        [("/tmp/evil-absolute", b"x")],
        [("..", b"x")],
        [special("l", tarfile.SYMTYPE, "/etc"), ("l/evil", b"x")],
        [special("l", tarfile.SYMTYPE, "/etc/passwd")],
        [special("l", tarfile.SYMTYPE, "../evil")],
        [special("a/l", tarfile.SYMTYPE, "../../evil")],
        [special("l", tarfile.LNKTYPE, "../a.tar.gz")],
        [special("l", tarfile.LNKTYPE, "/etc/passwd")],
        # each link points inside by its text, but leads outside by another link
        [special("a/b", tarfile.SYMTYPE, "."), special("l", tarfile.SYMTYPE, "a/b/../../evil")],
        [special("d", tarfile.SYMTYPE, "x/y"), special("l", tarfile.SYMTYPE, "d/../../evil")],
        [special("x/y", tarfile.SYMTYPE, "."), ("x/y/../../evil", b"x")],
        [special("x/y", tarfile.SYMTYPE, "../f"), special("l", tarfile.LNKTYPE, "x/y")],
        [special("inside", tarfile.SYMTYPE, "top"), ("inside/file", b"x")],
    ],
)
def test_nothing_leaves_the_folder(tmp_path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    with pytest.raises(ArchiveError, match="may lead out of its folder; it is not extracted"):
        unpack(tmp_path, archive(*GOOD, *members))
    assert not Path("/tmp/evil-absolute").exists()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="'top/node', which is no file, directory or link"):
        unpack(tmp_path, archive(*GOOD, special("top/node", kind)))


def test_set_user_id_bits_are_taken_away(tmp_path: Path) -> None:
    info = special("top/root-shell", tarfile.REGTYPE)
    info.mode, info.uid = 0o6777, 0
    assert (unpack(tmp_path, archive(info)) / "top" / "root-shell").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", b"\x1f\x8b\x08 no gzip", archive(*GOOD)[:150], archive(("f", bytes(100_000)))[:200]],
)
def test_what_is_no_archive_or_cut_short_is_told(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArchiveError, match="the archive of the engine is broken"):
        unpack(tmp_path, data)


def test_content_that_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    huge = special("huge", tarfile.REGTYPE)
    huge.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 60)}
    with pytest.raises(DiskSpaceError, match=r"extracting the engine needs 1,152,921,504,606.8 MB in .*; make room"):
        unpack(tmp_path, archive(huge))
    assert list((tmp_path / "box" / "out").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive(("zeros", bytes(3_000_000))))
    script = f"""
import resource, sys
from pathlib import Path
from runed.bootstrap.archive import extract
from runed.bootstrap.disk import file_errors
from runed.errors import DiskSpaceError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, {resource.RLIM_INFINITY}))
try:
    with file_errors("install"):
        extract(Path({str(tmp_path / "a.tar.gz")!r}), Path({str(tmp_path / "out")!r}))
except DiskSpaceError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "cannot install: File too large" in result.stderr


def test_a_program_alone_is_placed_where_the_manifest_says(tmp_path: Path) -> None:
    (tmp_path / "download").write_text(VERSION_SCRIPT)
    place_program(tmp_path / "download", tmp_path / "out", PurePosixPath("bin/llama-server"))
    program = check_executable(tmp_path / "out", PurePosixPath("bin/llama-server"))
    assert program.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["top/gone", "top", "top/lib.so.1"])
def test_an_archive_without_the_program_is_told(tmp_path: Path, name: str) -> None:
    folder = unpack(tmp_path, archive(*GOOD))
    with pytest.raises(ArchiveError, match=f"holds no executable {name}; check `exec` in the manifest"):
        check_executable(folder, PurePosixPath(name))


def folders(tmp_path: Path, *names: str) -> tuple[Path, Path, Path]:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    return tmp_path / "fresh", tmp_path / "place", tmp_path / "retired"


def who(folder: Path) -> str:
    return (folder / "who").read_text()


def test_a_fresh_engine_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    fresh, place, retired = folders(tmp_path, "fresh", "place")
    swap_in(fresh, place, retired)
    assert who(place) == "fresh"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_the_old_engine_comes_back_when_the_swap_fails(tmp_path: Path) -> None:
    fresh, place, retired = folders(tmp_path, "place")
    with pytest.raises(FileNotFoundError):
        swap_in(fresh, place, retired)
    assert who(place) == "place"


@pytest.mark.parametrize(
    ("left", "survivor"),
    [(("fresh", "retired"), "retired"), (("place", "retired"), "place"), (("fresh", "place"), "place")],
)
def test_a_crash_in_the_middle_of_a_swap_leaves_a_working_engine(tmp_path: Path, left: tuple[str, ...], survivor: str) -> None:
    fresh, place, retired = folders(tmp_path, *left)
    recover(fresh, place, retired)
    assert who(place) == survivor
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
