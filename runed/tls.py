"""What is wrong with the encryption of a server, and whether it has any."""

from __future__ import annotations

import asyncio
import ssl

import httpx

_NO_TLS = {"HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"}
"""What OpenSSL calls an answer that is not TLS."""

_OUT_OF_TIME = {9, 10}
"""The codes of OpenSSL for a certificate that is not valid yet, or not any more."""

_QUESTION = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

_PATIENCE = 2.0
"""Seconds to wait for the answer to it."""


class PlainHTTPError(httpx.ConnectError):
    """The server of an https URL speaks HTTP without encryption."""


def tls_problem(error: BaseException | None) -> ssl.SSLError | None:
    """Return what is wrong with the encryption of a server, if another try would meet it again."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or (isinstance(error, ssl.SSLError) and error.reason in _NO_TLS):
            return error
        error = error.__cause__ or error.__context__
    return None


def is_out_of_time(problem: ssl.SSLCertVerificationError) -> bool:
    """Return whether a certificate was refused since it is not valid today."""
    return problem.verify_code in _OUT_OF_TIME


async def speaks_http(host: str, port: int) -> bool:
    """Return whether a server that lets a TLS handshake wait answers HTTP without encryption. It gets no name and no secret."""
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_QUESTION)
                return (await reader.read(5)).startswith(b"HTTP/")
            finally:
                writer.close()
    except OSError:  # also TimeoutError
        return False
