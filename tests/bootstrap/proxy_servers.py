"""Real proxies on loopback: an HTTP proxy and a SOCKS5 proxy. Whatever host they are asked for, they connect to one site."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class ProxyServer:
    """A running proxy.

    Attributes:
        address: Its host and port, such as "127.0.0.1:4711".
        site_port: The port of loopback to which it connects.
        asked: The hosts and ports that it was asked for.
        released: An event that ends the connections of a silent proxy.
        logins: The logins that came: the value of Proxy-Authorization, or "user:password" with SOCKS.
    """

    address: str
    site_port: int
    asked: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


class _Handler(socketserver.StreamRequestHandler):
    proxy: ProxyServer

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.proxy.site_port), timeout=10)

    def relay(self, site: socket.socket) -> None:
        """Send everything from the client to the site, and everything from the site to the client."""

        def upwards() -> None:
            with contextlib.suppress(OSError, ValueError):
                while data := self.rfile.read1(65536):
                    site.sendall(data)
                site.shutdown(socket.SHUT_WR)

        threading.Thread(target=upwards, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := site.recv(65536):
                self.wfile.write(data)
            self.connection.shutdown(socket.SHUT_RDWR)  # also ends `upwards`


class _HttpHandler(_Handler):
    def handle(self) -> None:
        method, target, version = self.rfile.readline().decode().split()
        head = list(iter(self.rfile.readline, b"\r\n"))
        self.proxy.logins += [
            line.decode().partition(":")[2].strip() for line in head if line.lower().startswith(b"proxy-auth")
        ]
        with self.connect() as site:
            if method == "CONNECT":
                self.proxy.asked.append(target)
                self.wfile.write(b"HTTP/1.1 200 connected\r\n\r\n")
            else:
                parts = urlsplit(target)
                self.proxy.asked.append(parts.netloc)
                kept = [line for line in head if not line.lower().startswith((b"proxy-", b"connection"))]
                site.sendall(f"{method} {parts.path} {version}\r\n".encode() + b"".join(kept) + b"Connection: close\r\n\r\n")
            self.relay(site)


class _SocksHandler(_Handler):
    """SOCKS5 (RFC 1928) with the names of hosts, and user and password (RFC 1929) if the client offers them."""

    def handle(self) -> None:
        _, count = self.rfile.read(2)
        login = 2 in self.rfile.read(count)
        self.wfile.write(bytes([5, 2 if login else 0]))
        if login:
            self.rfile.read(1)
            user, password = (self.rfile.read(self.rfile.read(1)[0]).decode() for _ in range(2))
            self.proxy.logins.append(f"{user}:{password}")
            self.wfile.write(b"\x01\x00")
        kind = self.rfile.read(4)[3]
        host = self.rfile.read(self.rfile.read(1)[0]).decode() if kind == 3 else socket.inet_ntoa(self.rfile.read(4))
        port = int.from_bytes(self.rfile.read(2), "big")
        self.proxy.asked.append(f"{host}:{port}")
        with self.connect() as site:
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            self.relay(site)


class _RefusingHandler(_Handler):
    """SOCKS5 that cannot reach any host. It leaves it to the client to close the connection."""

    def handle(self) -> None:
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x00")
        self.rfile.read(self.rfile.read(5)[4] + 2)
        self.wfile.write(b"\x05\x04\x00\x01" + bytes(6))
        self.proxy.released.wait(60)


class _LoginHandler(_Handler):
    """An HTTP proxy that accepts no login."""

    def handle(self) -> None:
        list(iter(self.rfile.readline, b"\r\n"))
        self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


class _SocksLoginHandler(_Handler):
    """SOCKS5 that accepts no login."""

    def handle(self) -> None:
        offered = self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x02" if 2 in offered else b"\x05\xff")
        if 2 in offered:
            self.rfile.read(1)
            for _ in ("user", "password"):
                self.rfile.read(self.rfile.read(1)[0])
            self.wfile.write(b"\x01\x01")


class _HangingUpHandler(_Handler):
    """Reads the first words of a client, and closes the connection."""

    def handle(self) -> None:
        self.connection.recv(4096)


class _SilentHandler(_Handler):
    """Accepts, and never answers. Closes the connection at the end of the proxy."""

    def handle(self) -> None:
        self.proxy.released.wait(60)


_HANDLERS = {
    "http": _HttpHandler,
    "socks": _SocksHandler,
    "refusing": _RefusingHandler,
    "login": _LoginHandler,
    "socks login": _SocksLoginHandler,
    "hanging up": _HangingUpHandler,
    "silent": _SilentHandler,
}


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """Ignore clients that went away."""


@contextmanager
def running_proxy(kind: str, site_url: str) -> Iterator[ProxyServer]:
    """Run a proxy until the block ends. Only one of each kind can run at a time.

    Args:
        kind: "http", "socks", "refusing" for one of SOCKS that reaches no host, "login" and "socks login" for ones that accept
            no login, "hanging up" for one that closes each connection, or "silent" for one that never answers.
        site_url: The site to which it connects.
    """

    handler = _HANDLERS[kind]
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy = ProxyServer(f"127.0.0.1:{server.server_address[1]}", urlsplit(site_url).port or 80)
        handler.proxy = proxy
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            server.shutdown()
            thread.join()
