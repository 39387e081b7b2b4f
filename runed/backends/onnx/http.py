"""The questions to the ONNX worker, over its UNIX socket; `worker.py` describes their form.

An error quotes no text, nor an answer of the worker.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from runed.backends.base import EmbeddingBatch, TextInput, Tokens, pack
from runed.backends.engine.http import EngineHTTP
from runed.backends.engine.vectors import check_vectors
from runed.errors import BackendFaultError, InvalidTextError, TextTooLongError

_OK, _TOO_LONG = 200, 413

_IDS = 0x8000_0000
"""The bit of a size that marks ids of tokens."""

_SENTENCE_BYTES = 64 * 1024
"""Most bytes of an answer beside its numbers: of a sentence on an error."""

_BYTES_A_BYTE = 16
"""Bytes of tokens for each byte of a text. A byte has two tokens at most, of four bytes each."""

_SPELLED_BYTES = 4096
"""Most bytes of the text of a token."""


class OnnxHTTP(EngineHTTP):
    """Talks to one ONNX worker. Must be made inside the event loop that uses it.

    Args:
        socket: The worker's UNIX socket.
        dim: The number of values that each vector must have.
        max_tokens: The largest number of tokens of one text.
    """

    name: ClassVar[str] = "ONNX Runtime"

    def __init__(self, socket: Path, *, dim: int, max_tokens: int) -> None:
        super().__init__(socket, dim=dim, max_tokens=max_tokens, content_type="application/octet-stream")

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text as `embed` would see it, including special tokens.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        question = _pack(texts)
        answer = await self._ask("/tokenize", question, limit=_BYTES_A_BYTE * len(question))
        return [self._ids(part) for part in self._unpack(answer, len(texts))]

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token.

        Raises:
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        answer = await self._ask("/spell", pack(tokens).tobytes(), limit=_SPELLED_BYTES * len(tokens))
        return [part.decode(errors="replace") for part in self._unpack(answer, len(tokens))]

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Embed a batch of texts, or of their tokens. Return one vector a text, in their order, each checked.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            TextTooLongError: A text has more tokens than the worker takes.
            BackendFaultError: The answer is not one unit vector of the right length for each text.
            ConnectionLostError: There was no complete answer.
        """
        count, size = len(texts), 4 * self._dim
        answer = await self._ask("/embed", _pack(texts), limit=count * (4 + size))
        if len(answer) != count * (4 + size):
            raise BackendFaultError(f"{self.name} answered other vectors than {count} of {self._dim} values")
        counts = array("I", answer[: 4 * count])
        vectors = [answer[start : start + size] for start in range(4 * count, len(answer), size)]
        if max(counts, default=0) > self.max_tokens:  # it has refused such texts itself
            raise BackendFaultError(f"{self.name} told more tokens than a text can have")
        check_vectors(vectors, dim=self._dim, engine=self.name)
        return EmbeddingBatch(vectors, sum(counts), counts)

    async def _ask(self, path: str, question: bytes, *, limit: int) -> bytes:
        """Return the body of an answer of `limit` bytes at most."""
        status, body = await self._connections.post(path, question, limit=_SENTENCE_BYTES + limit)
        if status == _OK:
            return body
        if status == _TOO_LONG and body.isdigit():
            raise TextTooLongError(
                f"a text has {int(body):,} tokens and at most {self.max_tokens:,} are read at once; shorten or split it",
                metadata={"tokens": str(int(body)), "limit": str(self.max_tokens)},
            )
        raise BackendFaultError(f"{self.name} answered {path} with HTTP status {status}; its log may say why")

    def _unpack(self, answer: bytes, count: int) -> list[bytes]:
        """Return the `count` parts of a list."""
        start = 4 * count
        if len(answer) < start or len(answer) != start + sum(sizes := array("I", answer[:start])):
            raise self._nonsense()
        return [answer[start : (start := start + size)] for size in sizes]

    def _ids(self, part: bytes) -> Tokens:
        """Return the ids of the tokens of a text."""
        if len(part) % 4 or min(ids := array("i", part), default=0) < 0:
            raise self._nonsense()
        return ids

    def _nonsense(self) -> BackendFaultError:
        return BackendFaultError(f"{self.name} gave an answer that is not of the expected form")


def _pack(texts: Sequence[TextInput]) -> bytes:
    """Return texts in the form of a question."""
    try:
        parts = [text.encode() if isinstance(text, str) else text.tobytes() for text in texts]
    except UnicodeEncodeError:  # its message quotes the text
        raise InvalidTextError("a text is not valid Unicode (it has a lone surrogate); replace or remove it") from None
    marks = (0 if isinstance(text, str) else _IDS for text in texts)
    sizes = array("I", [len(texts), *(len(part) | mark for part, mark in zip(parts, marks, strict=True))])
    return b"".join([sizes.tobytes(), *parts])
