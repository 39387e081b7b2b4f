"""The port, for programs that cannot reach a UNIX socket, and the token that each of their requests must carry.

Every user and every web page of this machine can reach a loopback port. Unlike the socket, it needs a secret. A port that other
machines can reach, as from outside of a container, is opened only if the settings say so twice.
"""

from __future__ import annotations

import re
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from runed.errors import ForeignPathError, SettingsError
from runed.files import load_secret
from runed.lifecycle.listener import BACKLOG
from runed.setting_values import is_exposed

_TOKEN_BYTES = 32
"""Random bytes in a new token."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
"""Pattern of a token: characters that a `Bearer` header can carry (RFC 6750), and enough of them against guessing."""


_ON_THIS_MACHINE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # named, not listened on
"""Addresses that stand for all of this machine, each with one that its programs can connect to."""


class Loopback:
    """A listening TCP socket, on a loopback address unless the settings expose it, and its token.

    Attributes:
        sock: The listening socket, for the server.
        port: Its port.
        url: Its URL for programs of this machine, such as "http://127.0.0.1:8321".
        token: The token that a request must carry; None if it needs none.
        address: What it listens on, such as "0.0.0.0:8321".
        exposed: Whether other machines may reach it.
    """

    def __init__(self, sock: socket.socket, token: str | None) -> None:
        host, self.port = sock.getsockname()[:2]
        self.sock = sock
        self.url = _url(_ON_THIS_MACHINE.get(host, host), self.port)
        self.token = token
        self.address = _url(host, self.port).removeprefix("http://")
        self.exposed = is_exposed(host)

    @classmethod
    def open(cls, address: tuple[str, int], token: Path | None, *, lent: socket.socket | None = None) -> Self:
        """Listen on a port, and read the token, which is made at the first use.

        Args:
            address: Host and port, as in `Settings.http`. Port 0 lets the system choose one.
            token: The file of the token; None for a port that needs none.
            lent: A socket of a service manager that listens there already.

        Raises:
            SettingsError: The port cannot be listened on.
            ForeignPathError: See `load_token`.
        """
        sock = lent or _listen(address)
        try:
            return cls(sock, None if token is None else load_token(token))
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
    """Read the token, and make it first if there is none; see `load_secret`.

    Args:
        path: The file, in a private directory that exists. A user may have written a token of their own into it.

    Returns:
        16 to 512 characters that a `Bearer` header can carry.

    Raises:
        ForeignPathError: The file belongs to another user, or has no token.
    """
    secret = load_secret(path, _new_token)
    token = secret.decode("latin-1").strip()
    if not _TOKEN.fullmatch(token):
        raise ForeignPathError(
            f"{path} holds no token, which is 16 to 512 letters, digits or any of ._~+/=-; remove it, and the next start makes "
            "one"
        )
    return token


def _new_token() -> bytes:
    return f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n".encode()


def _listen(address: tuple[str, int]) -> socket.socket:
    host, port = address
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        # Without this, connections of the last daemon that are still being closed would block the port.
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
