"""The loopback port and its token. The token is private and made once, and nothing else at its path is accepted."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runed.errors import ForeignPathError, SettingsError
from runed.lifecycle.loopback import Loopback, load_token


@pytest.fixture
def path(home: Path) -> Path:
    return home / "http.token"


def test_token_is_made_once_private_and_hard_to_guess(path: Path) -> None:
    token = load_token(path)
    assert len(token) >= 43
    assert path.read_text() == f"{token}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["http.token"]
    assert load_token(path) == token
    path.unlink()
    assert load_token(path) != token


def test_those_who_make_one_at_the_same_time_get_the_same(path: Path) -> None:
    code = """
import sys
from pathlib import Path
from runed.lifecycle.loopback import load_token
input()
print(load_token(Path(sys.argv[1])))
"""
    starters = [
        subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    tokens = {starter.communicate(timeout=30)[0] for starter in starters}
    assert tokens == {path.read_text()}
    assert [entry.name for entry in path.parent.iterdir()] == ["http.token"]


def test_one_who_is_slower_takes_what_the_quicker_one_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def be_late(source: Path, target: Path) -> None:
        target.write_text("made-by-the-quicker-one\n")
        link(source, target)

    monkeypatch.setattr(os, "link", be_late)
    assert load_token(path) == "made-by-the-quicker-one"
    assert [entry.name for entry in path.parent.iterdir()] == ["http.token"]


def test_own_token_is_taken_and_made_private(path: Path) -> None:
    path.write_text("my-own-token-of-some-length\r\n")
    path.chmod(0o644)
    assert load_token(path) == "my-own-token-of-some-length"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two words of many letters", b"x" * 513, b"\xff" * 20, b"line-of-letters\n" * 2]
)
def test_file_without_a_token_is_refused_untouched(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ForeignPathError, match="holds no token") as caught:
        load_token(path)
    assert path.read_bytes() == content
    assert "remove it" in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_file_is_refused_untouched(kind: str, path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("a-token-of-somebody-else\n")
    match kind:
        case "link":
            path.symlink_to(elsewhere)
        case "directory":
            path.mkdir()
        case _:
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(ForeignPathError, match=r"http\.token"):
        load_token(path)
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:{}"), ("::1", "http://[::1]:{}")])
def test_port_is_of_loopback_alone(host: str, url: str, path: Path) -> None:
    with Loopback.open((host, 0), path) as http:
        assert http.sock.getsockname()[:2] == (host, http.port)
        assert http.port
        assert http.url == url.format(http.port)
        assert http.token == load_token(path)
        assert not os.get_inheritable(http.sock.fileno())
    assert http.sock.fileno() == -1


@pytest.mark.parametrize(("host", "name"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_port_of_all_addresses_is_exposed_and_has_a_url_for_this_machine(host: str, name: str, path: Path) -> None:
    with Loopback.open((host, 0), path) as http:
        assert http.exposed
        assert http.url == f"http://{name}:{http.port}"
        assert http.address == f"{f'[{host}]' if ':' in host else host}:{http.port}"
    with Loopback.open(("127.0.0.1", 0), path) as http:
        assert not http.exposed


def test_port_that_is_taken_is_told_with_what_to_do(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"RUNED_HTTP: http://127.0.0.1:{port} cannot be listened on: .* choose another"
        ):
            Loopback.open(("127.0.0.1", port), path)
    with Loopback.open(("127.0.0.1", port), path) as http:
        assert http.port == port


def test_port_is_free_again_if_there_is_no_token(path: Path) -> None:
    path.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ForeignPathError):
        Loopback.open(("127.0.0.1", port), path)
    with socket.create_server(("127.0.0.1", port)):
        pass
