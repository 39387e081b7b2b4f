"""The socket: a dead one is taken over, foreign files are left untouched, and a stolen path is noticed."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from runed.errors import AlreadyRunningError, DaemonUnavailableError, ForeignPathError
from runed.lifecycle.listener import Listener, dial, probe
from runed.paths import Paths, short_socket_path


@pytest.fixture
def path(home: Path) -> Path:
    return home / "embedding.sock"


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_bound_socket_accepts_and_is_open_to_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        with Listener.bind(path) as listener:
            assert probe(path)
            assert listener.is_ours()
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert os.umask(0) == 0, "bind must give the umask back"
    finally:
        os.umask(before)


def test_nobody_listens_on_a_missing_or_dead_socket(path: Path) -> None:
    assert not probe(path)
    leave_dead_socket(path)
    assert not probe(path)
    with pytest.raises(DaemonUnavailableError, match="no daemon listens"):
        dial(path)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    leave_dead_socket(path)
    with Listener.bind(path):
        assert probe(path)


def test_a_live_socket_is_not_stolen_by_a_second_bind(path: Path) -> None:
    with Listener.bind(path) as first:
        with pytest.raises(AlreadyRunningError, match="already listens"):
            Listener.bind(path)
        assert first.is_ours()
        assert probe(path)


def test_a_daemon_with_a_full_backlog_is_not_taken_for_a_dead_one(path: Path) -> None:
    waiting = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            waiting.append(connection)
            try:
                connection.connect(str(path))
            except BlockingIOError:
                break
        try:
            assert probe(path)
            with pytest.raises(AlreadyRunningError):
                Listener.bind(path)
        finally:
            for connection in waiting:
                connection.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link to a socket", "dangling link", "pipe"])
def test_what_is_not_a_socket_is_refused_and_left_untouched(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link to a socket":
            leave_dead_socket(path.with_name("other.sock"))
            path.symlink_to("other.sock")
        case "dangling link":
            path.symlink_to("nothing")
        case "pipe":
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(ForeignPathError, match=r"not a socket of yours.*RUNED_HOME"):
        Listener.bind(path)
    assert path.lstat() == before
    assert kind != "file" or path.read_text() == "precious"


def test_a_datagram_socket_in_the_way_is_told_as_foreign(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ForeignPathError, match="cannot be connected to"):
            Listener.bind(path)
        assert path.is_socket()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_dead_socket_of_another_user_is_refused_and_left_untouched(path: Path) -> None:
    leave_dead_socket(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(ForeignPathError, match=r"embedding\.sock belongs to user id 12345"):
        Listener.bind(path)
    assert path.is_socket()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to somebody else")
def test_a_home_of_another_user_is_refused(path: Path) -> None:
    os.chown(path.parent, 12345, 12345)
    with pytest.raises(ForeignPathError, match="belongs to user id 12345"):
        Listener.bind(path)
    assert not path.exists()


def test_a_path_that_cannot_be_bound_is_a_clear_error(home: Path) -> None:
    path = home / ("x" * 120)
    with pytest.raises(ForeignPathError, match="cannot be listened on"):
        Listener.bind(path)


def test_a_daemon_whose_socket_was_removed_or_replaced_notices_and_leaves_the_thief_alone(path: Path) -> None:
    with Listener.bind(path) as robbed:
        path.unlink()
        assert not robbed.is_ours()
        with Listener.bind(path) as thief:
            assert not robbed.is_ours()
            robbed.close()
            assert thief.is_ours()
            assert probe(path)


def test_closing_removes_the_socket_and_twice_does_no_harm(path: Path) -> None:
    listener = Listener.bind(path)
    listener.close()
    assert not path.exists()
    with Listener.bind(path):
        listener.close()
        assert probe(path)


def test_of_many_threads_that_dial_at_once_none_is_turned_away(path: Path) -> None:
    with Listener.bind(path):
        connections = []
        threads = [threading.Thread(target=lambda: connections.append(dial(path))) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(connections) == 64
        for connection in connections:
            connection.close()


class TestLongPath:
    """A home uses an alias in /tmp if its socket path is longer than the kernel allows."""

    @pytest.fixture
    def paths(self, home: Path) -> Paths:
        return Paths(home / ("deep-" * 30) / "home")

    def test_both_sides_meet_at_the_alias(self, paths: Paths) -> None:
        assert str(paths.socket).startswith(f"/tmp/runed-{os.getuid()}/runed-")
        with Listener.bind(paths.socket):
            assert probe(Paths(paths.home).socket)
        assert not paths.socket.exists()

    @pytest.mark.parametrize("trick", ["link", "open to others", "file"])
    def test_an_alias_directory_laid_out_by_somebody_else_is_trusted_by_neither_side(
        self, home: Path, paths: Paths, trick: str
    ) -> None:
        directory = paths.socket.parent
        kept = home / "kept"
        if directory.exists():
            directory.rename(kept)
        elsewhere = home / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        try:
            match trick:
                case "link":
                    directory.symlink_to(elsewhere)
                case "open to others":
                    directory.mkdir()
                    directory.chmod(0o777)
                case "file":
                    directory.touch(0o600)
            with pytest.raises(ForeignPathError, match="cannot be trusted"):
                Listener.bind(paths.socket)
            with pytest.raises(ForeignPathError, match="cannot be trusted"):
                dial(paths.socket)
            assert list(elsewhere.iterdir()) == []
        finally:
            directory.rmdir() if directory.is_dir() and not directory.is_symlink() else directory.unlink()
            if kept.exists():
                kept.rename(directory)

    def test_a_path_that_just_fits_needs_no_alias(self, home: Path) -> None:
        path = home / ("x" * (103 - len(str(home)) - 1))
        assert short_socket_path(path) == path
        with Listener.bind(path):
            assert probe(path)
