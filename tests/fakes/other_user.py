"""A process of another user, for tests that run as root: `other_user.py UID listen|connect|swap PATH`.

`listen` takes over the path of a socket, prints "ready", and then the number of bytes that it got by each connection.
`connect` sends a request for Health, and prints what comes back. `swap` prints "ready", and exchanges the directory PATH with
PATH.theirs as fast as it can.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2

REQUEST = (
    b"POST /runed.v1.RunedService/Health HTTP/1.1\r\nhost: runed\r\ncontent-type: application/json\r\n"
    b"content-length: 2\r\nconnection: close\r\n\r\n{}"
)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def listen(uid: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        os.chown(path, uid, uid)
        become(uid)
        listener.listen(64)
        say("ready")
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(5)
                say(str(len(connection.recv(65536))))


def connect(uid: int, path: Path) -> None:
    become(uid)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with suppress(ConnectionError):
            connection.sendall(REQUEST)
        with suppress(ConnectionError):
            while data := connection.recv(65536):
                sys.stdout.buffer.write(data)


def swap(uid: int, path: Path) -> None:
    rename, ours, theirs = ctypes.CDLL(None).renameat2, bytes(path), bytes(path) + b".theirs"
    become(uid)
    say("ready")
    while True:
        if rename(AT_FDCWD, ours, AT_FDCWD, theirs, RENAME_EXCHANGE) != 0:
            sys.exit("the swap failed")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"listen": listen, "connect": connect, "swap": swap}[sys.argv[2]](int(sys.argv[1]), Path(sys.argv[3]))
