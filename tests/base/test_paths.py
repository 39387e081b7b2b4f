"""Private directories and short aliases."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runed.errors import ForeignPathError
from runed.paths import Paths, ensure_home, ensure_private_dir, short_socket_path


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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_missing_home_is_made_private_and_no_parent_is_open_to_writers(home: Path) -> None:
    before = os.umask(0)
    try:
        ensure_home(home / "a" / "b")
    finally:
        os.umask(before)
    assert (mode(home / "a"), mode(home / "a" / "b")) == (0o755, 0o700)


def test_umask_that_takes_away_the_rights_of_the_owner_does_not_lock_the_owner_out(home: Path) -> None:
    before = os.umask(0o177)
    try:
        ensure_home(home / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("names", [(), ("config.json",), ("daemon.lock", "notes"), ("installed.json", "config.json")])
def test_wide_directory_that_is_empty_or_runeds_is_narrowed(home: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (home / name).touch()
    home.chmod(0o755)
    ensure_home(home)
    assert mode(home) == 0o700


@pytest.mark.parametrize("names", [("notes",), ("config.json", "notes"), ("bin", "cache"), (".bashrc",)])
def test_wide_directory_of_other_things_keeps_its_mode_and_is_refused_with_it(home: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (home / name).touch()
    home.chmod(0o755)
    with pytest.raises(ForeignPathError, match=rf"others can enter {home} \(mode 0755\).*such as {home}/runed$"):
        ensure_home(home)
    assert mode(home) == 0o755
    home.chmod(0o700)
    ensure_home(home)


@pytest.mark.parametrize("wide", [0o1777, 0o777, 0o2775, 0o720, 0o702])
@pytest.mark.parametrize("name", ["", "daemon.lock"])
def test_directory_that_others_can_write_to_keeps_its_mode_and_is_refused(home: Path, wide: int, name: str) -> None:
    if name:
        (home / name).touch()
    home.chmod(wide)
    with pytest.raises(ForeignPathError, match=rf"others can write to {home} \(mode {wide:04o}\)") as refused:
        ensure_home(home)
    assert ("chmod" in str(refused.value)) == (wide != 0o1777), "nobody shall take /tmp from the others"
    assert mode(home) == wide


def test_directory_behind_a_link_keeps_its_mode(home: Path) -> None:
    (home / "real").mkdir()
    (home / "real").chmod(0o755)
    (home / "link").symlink_to("real")
    with pytest.raises(ForeignPathError, match="others can enter"):
        ensure_home(home / "link")
    assert mode(home / "real") == 0o755
    (home / "real").chmod(0o700)
    ensure_home(home / "link")


def test_directory_in_a_home_keeps_its_mode(home: Path) -> None:
    ensure_private_dir(home / "new")
    assert mode(home / "new") == 0o700
    for wide in (0o755, 0o1777):
        (home / "new").chmod(wide)
        ensure_private_dir(home / "new")
        assert mode(home / "new") == wide


def test_shared_directory_behind_a_link_is_left_alone_and_only_models_may_lie_there(home: Path) -> None:
    team = home / "team"
    team.mkdir()
    team.chmod(0o2777)
    (home / "models").symlink_to(team)
    ensure_private_dir(home / "models", shared=True)
    with pytest.raises(ForeignPathError, match=rf"leads to {team}, and others can write there \(mode 2777\)"):
        ensure_private_dir(home / "models")
    assert mode(team) == 0o2777
    team.chmod(0o755)
    ensure_private_dir(home / "models")
    assert mode(team) == 0o755


@pytest.mark.parametrize("name", ["bin", "cache", "licenses", "logs", "run"])
def test_link_to_a_place_that_others_can_replace_is_refused_unless_they_are_trusted(home: Path, name: str) -> None:
    (home / "home").mkdir(0o700)
    (home / "wide").mkdir()
    (home / "wide").chmod(0o777)
    (home / "wide" / "place").mkdir(0o700)
    (home / "home" / name).symlink_to(home / "wide" / "place")
    with pytest.raises(ForeignPathError, match=rf"{name}.* RUNED_TRUST_PARENTS=1"):
        ensure_home(home / "home")
    ensure_home(home / "home", trust_parents=True)
    ensure_private_dir(home / "home" / name)
    (home / "wide" / "place").chmod(0o777)
    with pytest.raises(ForeignPathError, match="others can write there"):
        ensure_private_dir(home / "home" / name)


def test_link_to_nothing_in_the_place_of_a_directory_tells_where_it_leads(home: Path) -> None:
    (home / "models").symlink_to("/nonexistent/disk")
    for shared in (False, True):
        with pytest.raises(ForeignPathError, match="models leads to /nonexistent/disk, where there is no directory"):
            ensure_private_dir(home / "models", shared=shared)


@pytest.mark.parametrize("ensure", [ensure_home, ensure_private_dir])
def test_file_in_the_place_of_a_directory_is_refused_untouched(home: Path, ensure: Callable[[Path], None]) -> None:
    (home / "x").write_text("precious")
    with pytest.raises(ForeignPathError, match="not a directory"):
        ensure(home / "x")
    assert (home / "x").read_text() == "precious"


@as_root
@pytest.mark.parametrize("ensure", [ensure_home, ensure_private_dir])
def test_directory_of_somebody_else_is_refused(home: Path, ensure: Callable[[Path], None]) -> None:
    directory = home / "theirs"
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    with pytest.raises(ForeignPathError, match="12345"):
        ensure(directory)
    assert directory.stat().st_uid == 12345


@as_root
def test_file_of_somebody_else_in_a_directory_of_ours_is_refused(home: Path) -> None:
    (home / "engine.json").touch()
    os.chown(home / "engine.json", 12345, 12345)
    with pytest.raises(ForeignPathError, match=r"engine\.json belongs to user id 12345"):
        ensure_private_dir(home)


def test_home_below_a_device_is_refused_without_advice_to_chmod_the_device() -> None:
    with pytest.raises(ForeignPathError, match="Not a directory") as refused:
        ensure_home(Path("/dev/null/.runed"))
    assert "chmod" not in str(refused.value)
