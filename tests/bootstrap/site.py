"""A real web server on loopback. Its answers misbehave as a test asks."""

from __future__ import annotations

import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """A request: its path, and the values of some headers, "" if absent."""

    path: str
    range: str
    if_range: str
    authorization: str


Behaviour = Callable[["Exchange"], None]


class Site:
    """The files of a web server, and its misbehaviour.

    Attributes:
        url: The base URL, for example "http://127.0.0.1:4711".
        files: The content of each path.
        etags: The ETag of each path. The default is '"1"'; an empty one is not sent.
        behaviours: The misbehaviour for each of the next requests of a path, in turn.
        always: The misbehaviour for all further requests of a path.
        requests: The requests so far.
        released: An event that ends the stalled answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.behaviours: dict[str, list[Behaviour]] = defaultdict(list)
        self.always: dict[str, Behaviour] = {}
        self.requests: list[Request] = []
        self.released = threading.Event()

    def count(self, path: str) -> int:
        """Return the number of requests for a path."""
        return sum(request.path == path for request in self.requests)


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        """Answer as the site asks."""
        site = self.site
        names = ("Range", "If-Range", "Authorization")
        site.requests.append(Request(self.path, *(self.headers.get(name, "") for name in names)))
        queue = site.behaviours[self.path]
        behave = queue.pop(0) if queue else site.always.get(self.path, serve)
        try:
            behave(self)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    @property
    def content(self) -> bytes:
        """The whole file of this path."""
        return self.site.files[self.path]

    def begin(self, *, honour_range: bool = True, length: int | None = None) -> bytes:
        """Send the status and headers of a correct server, and return the body that follows."""
        content, etag = self.content, self.site.etags.get(self.path, '"1"')
        wanted = self.headers.get("Range") if honour_range else None
        if wanted and self.headers.get("If-Range") not in {None, etag}:
            wanted = None
        body = content
        if wanted:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return b""
            body = content[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        return body


def serve(exchange: Exchange) -> None:
    """Answer as a correct server does, with 404 for unknown paths."""
    if exchange.path not in exchange.site.files:
        status(404)(exchange)
        return
    exchange.wfile.write(exchange.begin())


def status(code: int, **headers: str) -> Behaviour:
    """Answer with a status and an empty body."""

    def behave(exchange: Exchange) -> None:
        exchange.send_response(code)
        for name, value in headers.items():
            exchange.send_header(name.replace("_", "-"), value)
        exchange.send_header("Content-Length", "0")
        exchange.end_headers()

    return behave


def redirect(url: str) -> Behaviour:
    """Redirect to a URL."""
    return status(302, Location=url)


def drop_after(count: int, *, honour_range: bool = True) -> Behaviour:
    """Announce the whole body, and close the connection after some bytes of it."""

    def behave(exchange: Exchange) -> None:
        body = exchange.begin(honour_range=honour_range)
        exchange.wfile.write(body[:count])
        exchange.close_connection = True

    return behave


def ignore_range(exchange: Exchange) -> None:
    """Send the whole file, although the client asked for a part."""
    exchange.wfile.write(exchange.begin(honour_range=False))


def stall_after(count: int) -> Behaviour:
    """Send some bytes, wait with the connection open until the site releases it, then send the rest."""

    def behave(exchange: Exchange) -> None:
        body = exchange.begin()
        exchange.wfile.write(body[:count])
        exchange.wfile.flush()
        exchange.site.released.wait(60)
        exchange.wfile.write(body[count:])

    return behave


def trickle(exchange: Exchange) -> None:
    """Send the body byte by byte, 20 a second, until the client leaves or the site releases it."""
    for byte in exchange.begin():
        exchange.wfile.write(bytes([byte]))
        if exchange.site.released.wait(0.05):
            break
    exchange.close_connection = True


def without_length(body: bytes) -> Behaviour:
    """Send a body that ends with the connection, as in HTTP/1.0."""

    def behave(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Connection", "close")
        exchange.end_headers()
        exchange.wfile.write(body)
        exchange.close_connection = True

    return behave


def wrong_part(exchange: Exchange) -> None:
    """Answer a range with a wrong part of the file."""
    content = exchange.content
    exchange.send_response(206)
    exchange.send_header("Content-Range", f"bytes 1-{len(content) - 1}/{len(content)}")
    exchange.send_header("Content-Length", str(len(content) - 1))
    exchange.end_headers()
    exchange.wfile.write(content[1:])


@contextmanager
def running_site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve on a free port of loopback until the block ends, by https if `tls` is given."""

    class Bound(Exchange):
        pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        block_on_close = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that went away, since several tests do this."""

    with Server(("127.0.0.1", 0), Bound) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        site = Site(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}")
        Bound.site = site
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            site.released.set()
            server.shutdown()
            thread.join()
