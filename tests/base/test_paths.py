"""Private directories and short aliases."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from runed.errors import ForeignPathError
from runed.paths import Paths, ensure_private_dir, short_socket_path


def test_short_path_stays() -> None:
    assert Paths(Path("/home/me/.runed")).socket == Path("/home/me/.runed/embedding.sock")


@pytest.mark.parametrize(("length", "aliased"), [(103, False), (104, True), (105, True)])
def test_path_of_104_bytes_gets_the_alias_that_all_clients_compute(length: int, *, aliased: bool) -> None:
    path = Path("/" + "x" * (length - 1))
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    expected = Path(f"/tmp/runed-{os.getuid()}/runed-{digest}.sock") if aliased else path
    assert short_socket_path(path) == expected


def test_length_is_counted_in_bytes() -> None:
    assert short_socket_path(Path("/" + "ü" * 52)).parent == Path(f"/tmp/runed-{os.getuid()}")


def test_wide_directory_of_ours_is_narrowed(home: Path) -> None:
    directory = home / "wide"
    directory.mkdir(mode=0o755)
    ensure_private_dir(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_file_in_the_place_of_a_directory_is_refused_untouched(home: Path) -> None:
    (home / "x").write_text("precious")
    with pytest.raises(ForeignPathError, match="not a directory"):
        ensure_private_dir(home / "x")
    assert (home / "x").read_text() == "precious"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory of somebody else")
def test_directory_of_somebody_else_is_refused(home: Path) -> None:
    directory = home / "theirs"
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    with pytest.raises(ForeignPathError, match="12345"):
        ensure_private_dir(directory)
    assert directory.stat().st_uid == 12345
