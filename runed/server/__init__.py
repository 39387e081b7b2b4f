"""Hypercorn on a listening socket, with an HTTP/2 of our own that works under gRPC load.

The rest of runed uses `Server` alone. From a socket to the app: `serving` accepts and drains, `door` turns other users away,
`connection` moves bytes and chooses the protocol, `http1` and `http2` turn bytes into requests, and `stream` is one request as
the ASGI app sees it.
"""

from runed.server.serving import Server

__all__ = ["Server"]
