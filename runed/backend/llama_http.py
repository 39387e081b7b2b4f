"""The part of `llama-server`'s HTTP interface that runed uses, over its UNIX socket; foreign errors end here.

A text is never quoted in an error, and so neither is a body of the server, which may quote one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
import numpy as np

from runed.backend.base import EmbeddingBatch
from runed.errors import BackendFaultError, InvalidTextError, TextTooLongError

_KEEP_ALIVE = 3.0
"""Seconds after which an unused connection is closed on this side; the server closes it after 5, under a request at worst."""

MAX_CONNECTIONS = 8
"""More requests wait here. The server gives each open connection a thread, even while it is not used: with more connections
than threads, a request waited 5 s for the keep-alive time of an idle one to pass (measured)."""

_HEALTH_TIMEOUT = 1.0

_OK = 200

_NORM_TOLERANCE = 1e-3
"""How far the square of a vector's norm may be from 1."""

_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large to process")

_T = TypeVar("_T")


class ConnectionLostError(Exception):
    """The connection to the server ended before its answer did.

    Attributes:
        unreachable: Whether there was nobody to connect to, so that no later request can succeed either.
    """

    def __init__(self, *, unreachable: bool) -> None:
        super().__init__("connection lost")
        self.unreachable = unreachable


class _Embedding(msgspec.Struct):
    index: int
    embedding: bytes  # msgspec decodes base64


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    n_prompt_tokens: int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class LlamaHTTP:
    """Talks to one `llama-server`. Must be made inside the event loop that uses it.

    Args:
        socket: The server's UNIX socket.
        dim: The number of values that each vector must have.
        max_tokens: The largest number of tokens of one text, told in errors.
    """

    def __init__(self, socket: Path, *, dim: int, max_tokens: int) -> None:
        self._dim = dim
        self._max_tokens = max_tokens
        self._session = aiohttp.ClientSession(
            base_url="http://engine",  # a name for the Host header; the socket is the address
            connector=aiohttp.UnixConnector(str(socket), limit=MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None),  # a busy server is not a dead one: `Supervisor` tells them apart
        )

    async def close(self) -> None:
        """Close all connections; requests on their way get `ConnectionLostError`."""
        await self._session.close()

    async def healthy(self) -> bool:
        """Tell whether the server has loaded its model."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT), self._session.get("/health") as response:
                return response.status == _OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def tokenize(self, text: str) -> list[int]:
        """Give the tokens of a text as `embed` would see it, special tokens included.

        Args:
            text: The text.

        Raises:
            InvalidTextError: The text is not valid Unicode.
            BackendFaultError: The answer is not what was asked for.
            ConnectionLostError: There was no complete answer.
        """
        body = await self._post("/tokenize", {"content": text, "add_special": True})
        return _decode(body, _Tokens).tokens

    async def embed(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Embed a batch.

        Args:
            texts: The texts.

        Returns:
            One vector a text, in their order, each checked.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            TextTooLongError: A text has more tokens than the server takes.
            BackendFaultError: The answer is not one unit vector of the right length for each text.
            ConnectionLostError: There was no complete answer.
        """
        body = await self._post("/v1/embeddings", {"input": texts, "encoding_format": "base64"})
        answer = _decode(body, _Embeddings)
        if sorted(item.index for item in answer.data) != list(range(len(texts))):
            raise BackendFaultError(f"llama-server answered {len(answer.data)} vectors to {len(texts)} texts")
        vectors = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
        _check_vectors(vectors, self._dim)
        return EmbeddingBatch(vectors, answer.usage.prompt_tokens)

    async def _post(self, path: str, question: dict[str, object]) -> bytes:
        try:
            data = msgspec.json.encode(question)
        except UnicodeEncodeError:  # its message quotes the text
            raise InvalidTextError("a text is not valid Unicode (it has a lone surrogate); replace or remove it") from None
        try:
            status, body = await self._exchange(path, data)
        except ConnectionLostError as error:
            if error.unreachable:
                raise
            # The server closes a connection that it kept alive just as the next request comes; nothing was computed then.
            status, body = await self._exchange(path, data)
        if status != _OK:
            raise self._explain(path, status, body)
        return body

    async def _exchange(self, path: str, data: bytes) -> tuple[int, bytes]:
        try:
            async with self._session.post(path, data=data) as response:
                return response.status, await response.read()
        except aiohttp.ClientResponseError:
            raise BackendFaultError("llama-server answered something that is not HTTP") from None
        except aiohttp.ClientConnectorError as error:
            gone = isinstance(error.os_error, FileNotFoundError | ConnectionRefusedError)
            raise ConnectionLostError(unreachable=gone) from None
        except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: the session was closed by `close`
            raise ConnectionLostError(unreachable=False) from None

    def _explain(self, path: str, status: int, body: bytes) -> TextTooLongError | BackendFaultError:
        """Turn an error answer into ours."""
        try:
            error = msgspec.json.decode(body, type=_ErrorBody).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = _Error()
        tokens = error.n_prompt_tokens
        if match := _TOO_LARGE.match(error.message):
            tokens = int(match[1])
        if tokens is None:
            # Only a plain name is repeated: anything else may hold a text.
            kind = f" ({error.type})" if error.type.isidentifier() else ""
            return BackendFaultError(
                f"llama-server answered {path} with HTTP status {status}{kind}; logs/llama-server.log may say why"
            )
        return TextTooLongError(
            f"a text has {tokens:,} tokens and at most {self._max_tokens:,} are read at once; shorten or split it",
            metadata={"tokens": str(tokens), "limit": str(self._max_tokens)},
        )


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BackendFaultError("llama-server answered something that is not what was asked for") from None


def _check_vectors(vectors: list[bytes], dim: int) -> None:
    """Refuse what is no embedding: the server answers NaN and zeros, of which no caller could know, with status 200."""
    for vector in vectors:
        if len(vector) != 4 * dim:
            raise BackendFaultError(f"llama-server answered a vector of {len(vector)} bytes, and the model's have {4 * dim}")
    matrix = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(-1, dim)
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(np.einsum("ij,ij->i", matrix, matrix) - 1.0)
    if not (off < _NORM_TOLERANCE).all():  # false for NaN and infinity, too
        what = "not finite" if not np.isfinite(matrix).all() else "not of unit norm"
        raise BackendFaultError(f"llama-server answered a vector that is {what}; the text's vector cannot be trusted")
