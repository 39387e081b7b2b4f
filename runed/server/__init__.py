"""A server of HTTP/1.1 and HTTP/2 on a listening socket, for an ASGI application.

The rest of runed uses the names below. From a socket to the app: `acceptor` accepts, `serving` makes room and drains, `door`
turns other users away, `connection` moves bytes and chooses the protocol, `http1`, `ordinary` and `heads`, or `http2`,
`framing` and `lingering`, turn bytes into requests, `gate` refuses requests without a secret, and `stream` is one request as
the ASGI app sees it. `budget` bounds the memory of all requests.
"""

from runed.server.budget import Budget, forget_message, owe, reserve
from runed.server.gate import Gate
from runed.server.heads import KNOWN_HEADS, Head, Headers, Refusal
from runed.server.serving import Server, connection_limits
from runed.server.stream import SMALL, WHEN_GONE

__all__ = [
    "KNOWN_HEADS",
    "SMALL",
    "WHEN_GONE",
    "Budget",
    "Gate",
    "Head",
    "Headers",
    "Refusal",
    "Server",
    "connection_limits",
    "forget_message",
    "owe",
    "reserve",
]
