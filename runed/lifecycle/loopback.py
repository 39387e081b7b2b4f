"""The loopback port, for programs that cannot reach a UNIX socket, and the token that each of their requests must carry.

Any user and any web page of this machine can reach a loopback port, so unlike the socket it needs a secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.errors import ForeignPathError, SettingsError
from runed.lifecycle.listener import BACKLOG

_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
"""What a `Bearer` header can carry (RFC 6750), and nobody guesses."""

_MOST_READ = 4096


class Loopback:
    """A listening TCP socket on a loopback address, and its token.

    Attributes:
        sock: The listening socket, for the server.
        port: Its port.
        url: Where it is, such as "http://127.0.0.1:8321".
        token: What a request has to carry.
    """

    def __init__(self, sock: socket.socket, token: str) -> None:
        host, self.port = sock.getsockname()[:2]
        self.sock = sock
        self.url = _url(host, self.port)
        self.token = token

    @classmethod
    def open(cls, address: tuple[str, int], token: Path) -> Self:
        """Listen on a port; the token is read, or made on the first use.

        Args:
            address: Host and port, as `Settings.http` has them; port 0 lets the system choose one.
            token: The file of the token.

        Raises:
            SettingsError: The port cannot be had.
            ForeignPathError: See `load_token`.
        """
        sock = _listen(address)
        try:
            return cls(sock, load_token(token))
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()


def load_token(path: Path) -> str:
    """Read the token, or make one if there is none; whoever does so at the same time gets the same one.

    Args:
        path: Its file, in a directory that is ours. It may be written by hand, with a token of one's own.

    Raises:
        ForeignPathError: The file is not ours, or holds no token.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
        # Unlike a renaming, this never replaces the token that somebody else has just made.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return _read(path)


def _listen(address: tuple[str, int]) -> socket.socket:
    host, port = address
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        # Connections of the last daemon that are still winding up would else keep the port from this one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        url = _url(host, port)
        raise SettingsError(
            f"RUNED_HTTP: {url} cannot be listened on: {error.strerror or error}; choose another port, or unset it"
        ) from None
    return sock


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _read(path: Path) -> str:
    # O_NONBLOCK: a pipe in its place must not hold the daemon up.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ForeignPathError(f"{path} cannot be read: {error.strerror}; remove it, and the next start makes one") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
            raise ForeignPathError(f"{path} is not a file of yours; remove it, and the next start makes one")
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
        token = os.read(descriptor, _MOST_READ).decode("latin-1").strip()
    finally:
        os.close(descriptor)
    if not _TOKEN.fullmatch(token):
        raise ForeignPathError(
            f"{path} holds no token, which is 16 to 512 letters, digits or any of ._~+/=-; remove it, and the next start makes "
            "one"
        )
    return token
