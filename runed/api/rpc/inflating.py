"""Decompresses messages of clients, in bounded time and memory."""

from __future__ import annotations

import gzip
import zlib

from runed.api.error_codes import MalformedRequestError
from runed.errors import RequestTooLargeError

_GZIP = 31
"""The `wbits` of zlib for gzip with a window of any size."""

_PIECE = 16 * 1024
"""Bytes that go into the decompressor at a time. It copies what is left of them at the end of each member."""

_MOST_MEMBERS = 4096
"""Most members of a compressed message. Each costs some time even if it is empty. Usual programs write one, or one for each
64 KiB."""


_QUERY_BYTES = 1024 * 1024
"""Most bytes of a message that a query holds."""


class Gzip:
    """Compression for the RPC library, which only needs it for a message in a query. `Intake` reads the bodies."""

    def name(self) -> str:
        """Return the name in headers."""
        return "gzip"

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Compress a message."""
        return gzip.compress(data, compresslevel=1)

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        """Decompress a message; see `inflate`."""
        return inflate(bytes(data), _QUERY_BYTES)


def inflate(data: bytes | bytearray, limit: int) -> bytes:
    """Decompress gzip.

    Args:
        data: One or several members.
        limit: The most bytes of the result.

    Raises:
        MalformedRequestError: This is no gzip, or not all of it, or it has too many members.
        RequestTooLargeError: The result would be too large.
    """
    result = bytearray()
    members = 1
    decompressor = zlib.decompressobj(_GZIP)
    try:
        for start in range(0, len(data), _PIECE):
            piece = bytes(data[start : start + _PIECE])
            while piece:
                if decompressor.eof:
                    members += 1
                    decompressor = zlib.decompressobj(_GZIP)
                result += decompressor.decompress(piece, limit + 1 - len(result))
                if len(result) > limit:
                    raise too_large(limit)
                if members > _MOST_MEMBERS:
                    raise MalformedRequestError(f"the gzip has more than {_MOST_MEMBERS} members; send one")
                piece = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
    except zlib.error:
        raise MalformedRequestError("the compressed message is no gzip, or damaged") from None
    if not decompressor.eof:
        raise MalformedRequestError("the compressed message ends too early; send all of it")
    return bytes(result)


def too_large(limit: int) -> RequestTooLargeError:
    """Return the error of a message of more than `limit` bytes."""
    return RequestTooLargeError(
        f"the request has more than the limit of {limit} bytes; send several requests", metadata={"limit": str(limit)}
    )
