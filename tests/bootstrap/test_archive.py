"""Archives that try to write outside their folder, are broken, or replace a working engine."""

from __future__ import annotations

import gzip
import random
import resource
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

from runed.bootstrap.archive import MAX_MEMBERS, check_executable, extract, place_program, recover, swap_in
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


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (
            [special("top/l", tarfile.LNKTYPE, "top/nothing")],
            "a hard link to 'top/nothing', which is no file before it",
        ),
        ([special("top/l", tarfile.LNKTYPE, "top/l")], "'top/l', a hard link to 'top/l'"),
        ([special("top/l", tarfile.LNKTYPE, "top/./l")], "a hard link to 'top/./l'"),
        ([special("top/l", tarfile.LNKTYPE, "")], "a hard link to ''"),
        ([special("top/l", tarfile.LNKTYPE, "top")], "a hard link to 'top'"),
        ([special("d", tarfile.DIRTYPE), special("l", tarfile.LNKTYPE, "d")], "a hard link to 'd'"),
        ([special("l", tarfile.LNKTYPE, "f"), ("f", b"later")], "a hard link to 'f'"),
        ([special("a", tarfile.LNKTYPE, "b"), special("b", tarfile.LNKTYPE, "a")], "'a', a hard link to 'b'"),
        ([special("top/lib.so.1", tarfile.LNKTYPE, "top/lib.so.1")], "'top/lib.so.1', which is in the way"),
        ([("top/lib.so.1", b"twice")], "in the way of another file"),
        ([special("top/lib.so", tarfile.SYMTYPE, "lib.so.1")], "in the way of another file"),
        ([("top/llama-server/below", b"x")], "in the way of another file"),
        ([("d/f", b"x"), ("d", b"x")], "is broken"),
        ([special("f", tarfile.REGTYPE), special("f", tarfile.DIRTYPE)], "in the way of another file"),
        ([("n" * 300, b"x")], "is broken: File name too long"),
        ([("a\x1b[2J", b"x"), ("a\x1b[2J", b"x")], r"'a\\x1b\[2J', which is in the way"),
    ],
)
def test_members_that_cannot_stand_beside_the_others_are_told(
    tmp_path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], match: str
) -> None:
    with pytest.raises(ArchiveError, match=match):
        unpack(tmp_path, archive(*GOOD, *members))


def test_links_in_a_circle_are_links_and_no_program(tmp_path: Path) -> None:
    circle = special("top/a", tarfile.SYMTYPE, "b"), special("top/b", tarfile.SYMTYPE, "a"), special("c", tarfile.SYMTYPE, "c")
    folder = unpack(tmp_path, archive(*GOOD, *circle))
    for name in ("top/a", "c"):
        with pytest.raises(ArchiveError, match="holds no executable"):
            check_executable(folder, PurePosixPath(name))


def header(name: bytes, kind: bytes, size: bytes = b"0", **fields: bytes) -> bytes:
    """Make a header with any fields, and the right checksum."""
    base = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "kind": (156, 1), "link": (157, 100)}
    block = bytearray(512)
    block[257:265] = b"ustar\x0000"
    for field, value in {"name": name, "mode": b"755", "size": size, "mtime": b"0", "kind": kind, **fields}.items():
        start, length = base[field]
        block[start : start + len(value)] = value[:length]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Fill up the last block."""
    return data + bytes(-len(data) % 512)


def pax(*records: bytes) -> bytes:
    """Make an extended header for the next member."""
    body = b""
    for record in records:
        length = len(record) + 2
        length += len(str(length + len(str(length))))
        body += b"%d %s\n" % (length, record)
    return header(b"pax", b"x", b"%o" % len(body)) + padded(body)


FILE = header(b"f", b"0", b"1") + padded(b"x")
SPARSE = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=f", b"GNU.sparse.realsize=10")
NEGATIVE = b"\xff" * 11 + b"\x80"


@pytest.mark.parametrize(
    "tar",
    [
        pax(b"path=a\0b") + FILE,
        pax(b"size=-512") + FILE,
        pax(b"size=99999999999999999999") + FILE,
        pax(b"mtime=nan") + FILE,
        pax(b"mtime=1e300") + FILE,
        pax(b"path=" + b"d/" * 3000 + b"f") + FILE,
        header(b"f", b"0", NEGATIVE) + FILE,
        header(b"f", b"0", mtime=b"\x80" + b"\xff" * 11),
        header(b"long", b"L", NEGATIVE),
        pax(*SPARSE) + header(b"f", b"0", b"1000") + padded(b"5\n-1\n7\n") + bytes(512),
        pax(*SPARSE) + header(b"f", b"0", b"1000") + padded(b"99999999\n" + b"0\n" * 200),
        pax(*SPARSE) + header(b"f", b"0", b"1000") + padded(b"no number\n"),
        pax(b"GNU.sparse.map=a,b", b"GNU.sparse.size=3") + FILE,
        pax(b"GNU.sparse.map=1", b"GNU.sparse.size=3") + FILE,
        pax(b"GNU.sparse.map=9223372036854775807,1", b"GNU.sparse.size=3") + FILE,
        header(b"s", b"S", b"1") + padded(b"x"),
        b"".join(header(b"%d" % number, b"0") for number in range(MAX_MEMBERS + 1)),
    ],
    ids=range(17),
)
def test_a_hostile_header_is_a_broken_archive(tmp_path: Path, tar: bytes) -> None:
    for end in (b"", bytes(1024)):
        folder = tmp_path / str(len(end))
        folder.mkdir()
        # Some of these are harmless; a Python with other checks may extract them.
        with suppress(ArchiveError, DiskSpaceError):
            unpack(folder, gzip.compress(tar + end, 1))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_of_any_size_takes_little_memory(tmp_path: Path, kind: bytes) -> None:
    data = gzip.compress(header(b"h", kind, b"%o" % (1 << 32)) + bytes(1 << 20), 1)
    with pytest.raises(ArchiveError, match="has headers of more than 16,777,216 bytes"):
        unpack(tmp_path, data)


def test_no_changed_byte_makes_another_error(tmp_path: Path) -> None:
    chance = random.Random(10)
    good = gzip.decompress(archive(*GOOD, special("top/same", tarfile.LNKTYPE, "top/lib.so.1"), special("d", tarfile.DIRTYPE)))
    heads = [start for start in range(0, len(good), 512) if good[start + 257 : start + 262] == b"ustar"]
    for number in range(200):
        tar = bytearray(good)
        start = chance.choice(heads)
        for _ in range(chance.randint(1, 4)):
            place = start + chance.choice([*range(148), *range(156, 300)])
            tar[place] = chance.choice([0, 0x1B, 0x2F, 0x2E, 0x31, 0x80, 0xFF, chance.randrange(256)])
        tar[start + 148 : start + 156] = b" " * 8
        tar[start + 148 : start + 156] = b"%06o\0 " % sum(tar[start : start + 512])
        folder = tmp_path / str(number)
        folder.mkdir()
        with suppress(ArchiveError, DiskSpaceError):
            unpack(folder, gzip.compress(bytes(tar), 0))


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
