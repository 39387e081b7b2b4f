"""One attacker: a connection that sends prepared bytes, keeps to the windows of HTTP/2, and discards the answers."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATA, HEADERS, RESET, WINDOW_UPDATE = 0, 1, 3, 8
END_STREAM = 0x1

HELLO = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\0\0\6\4\0\0\0\0\0\0\4\x7f\xff\xff\xff"  # SETTINGS: each stream may send us 2 GiB
    b"\0\0\4\x08\0\0\0\0\0\x7f\xff\0\0"  # WINDOW_UPDATE: and so may the connection
)
"""The first bytes of an attacker over HTTP/2."""

_PREFACE = 24
_FRAME_HEAD = 9
_FIRST_WINDOW = 256 * 1024
"""Bytes that the daemon takes of a body before it opens the window again."""

_QUIET = 0.5
"""Seconds without a byte after which an attack over HTTP/2 that has sent everything is over."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        make: Makes the bytes that each peer sends.
        calls_at_once: If set, the bytes are calls over HTTP/2, and each peer keeps this number of them open.
    """

    make: Callable[[], bytes]
    calls_at_once: int = 0

    def begin(self, path: Path, data: bytes, seconds: float) -> None:
        """Be one peer: attack again and again for some seconds, at least once, each time over a new connection."""
        end = time.monotonic() + seconds
        while True:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(path))
                    sock.setblocking(False)
                    Peer(sock, data, self.calls_at_once).run()
                except ConnectionError:
                    time.sleep(0.01)
            if time.monotonic() >= end:
                return


class Peer:
    """One connection of an attacker.

    Args:
        sock: A connected socket that does not block.
        data: The bytes to send.
        calls_at_once: As for `Attack`.
    """

    def __init__(self, sock: socket.socket, data: bytes, calls_at_once: int = 0) -> None:
        self._sock = sock
        self._http2 = data.startswith(b"PRI")
        self._calls_at_once = calls_at_once
        self._parts = self._frames(memoryview(data)) if self._http2 else iter([memoryview(data)])
        self._part = memoryview(b"")
        self._all_sent = False
        self._open = 0
        self._windows: dict[int, int] = {}
        self._answers = bytearray()

    def run(self) -> None:
        """Send everything, and read until the daemon closes the connection. Over HTTP/2, stop when it falls silent."""
        heard = time.monotonic()
        while not (self._http2 and self._all_sent and time.monotonic() - heard > _QUIET):
            if not self._part and not self._all_sent:
                self._fill()
            ready, writable, _ = select.select([self._sock], [self._sock] if self._part else [], [], 0.05)
            if writable:
                self._part = self._part[self._sock.send(self._part) :]
            if ready:
                if not (data := self._sock.recv(256 * 1024)):
                    return
                if self._http2:
                    self._take(data)
            if ready or writable:
                heard = time.monotonic()

    def _fill(self) -> None:
        """Gather the next part to send: all frames that the limits allow, up to 256 KiB."""
        gathered = bytearray()
        for part in self._parts:
            if not part:  # a limit is reached
                break
            if not self._http2:
                self._part = part
                return
            gathered += part
            if len(gathered) > 256 * 1024:
                break
        else:
            self._all_sent = True
        self._part = memoryview(bytes(gathered))

    def _frames(self, data: memoryview) -> Iterator[memoryview]:
        """Yield the frames one by one, and nothing (b"") while a limit forbids the next."""
        yield data[: len(HELLO)]
        at = len(HELLO)
        while at < len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            while kind == DATA and size and self._windows.setdefault(stream, _FIRST_WINDOW) < size:
                yield data[:0]
            while kind == HEADERS and self._calls_at_once and self._open >= self._calls_at_once:
                yield data[:0]
            if kind == DATA and size:
                self._windows[stream] -= size
                if flags & END_STREAM:
                    del self._windows[stream]
            self._open += kind == HEADERS
            yield data[at : at + _FRAME_HEAD + size]
            at += _FRAME_HEAD + size

    def _take(self, data: bytes) -> None:
        """Learn from the daemon's frames how much may be sent."""
        self._answers += data
        at = 0
        while len(self._answers) - at >= _FRAME_HEAD:
            head = bytes(self._answers[at : at + _FRAME_HEAD])
            size = int.from_bytes(head[:3], "big")
            if len(self._answers) - at < _FRAME_HEAD + size:
                break
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == RESET or (kind in {DATA, HEADERS} and flags & END_STREAM):
                self._open -= 1
            if kind == WINDOW_UPDATE and stream in self._windows:
                start = at + _FRAME_HEAD
                self._windows[stream] += int.from_bytes(self._answers[start : start + 4], "big")
            at += _FRAME_HEAD + size
        del self._answers[:at]
