"""What may lie in the place of a state file after a crash, a full disk, or somebody's mistake."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _listen(path: Path) -> None:
    # A path relative to a descriptor stays below the limit for sockets.
    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


def _make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)


def _fill(path: Path) -> None:
    path.mkdir()
    (path / "something").write_text("of the user")


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "nothing in it": lambda path: path.write_bytes(b""),
    "NULs": lambda path: path.write_bytes(bytes(500)),
    "no UTF-8": lambda path: path.write_bytes(
        b'{"version": 1, "\xff": "\xff", "socket": "\xff", "models": {"\xff": {}}, "no_repack": ["\xff"], "sha256": "\xff"}'
    ),
    "cut off": lambda path: path.write_bytes(b'{"version": 1, "models": {"a'),
    "nested": lambda path: path.write_bytes(b'{"more": ' + b"[" * 100_000),
    "nested whole": lambda path: path.write_bytes(b'{"more": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "other types": lambda path: path.write_bytes(b'{"version": "1", "pid": [], "models": 3, "tunings": 0, "url": 1}'),
    "large numbers": lambda path: path.write_bytes(b'{"version": %s, "pid": %s, "size": 1e999}' % (b"9" * 5000, b"9" * 30)),
    "a list": lambda path: path.write_bytes(b"[1, 2]"),
    "huge": _make_huge,
    "a directory": lambda path: path.mkdir(),
    "a full directory": _fill,
    "a pipe": os.mkfifo,
    "a socket": _listen,
    "a link to nothing": lambda path: path.symlink_to("nothing-here"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
"""Makers of bad files, by name. None of them has content that a record could have."""


def put_bad_file(kind: str, path: Path) -> None:
    """Replace a file by a bad one of `BAD_FILES`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    BAD_FILES[kind](path)
