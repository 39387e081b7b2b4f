"""What the interfaces of all engines share that are asked over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from runed.backends.engine.connections import Connections
from runed.backends.likeness import cosine

MAX_CONNECTIONS = 8
"""Most connections. Further requests wait in this process. An engine uses a thread for each open connection, even for an unused
one. Measured with `llama-server`: with more connections than threads, a request waited 5 s until an unused one was closed."""


class EngineHTTP:
    """The base of an interface to one engine; see `EngineInterface`. Must be made inside the event loop that uses it.

    Args:
        socket: The UNIX socket of the engine.
        dim: The number of values that each vector must have.
        max_tokens: The largest number of tokens of one text.
        content_type: The type of the questions.

    Attributes:
        name: Its name, for messages.
        max_tokens: As given.
        samples: Texts for the self-test, of several lengths. Each fits into a micro-batch of 63 tokens, even if each byte is a
            token. A smaller context gets their first tokens.
    """

    name: ClassVar[str]
    samples: ClassVar[Sequence[str]] = (
        *("runed", "two words", "A text of some length, with digits 0123 and signs.", "The last of the four."),
    )

    def __init__(self, socket: Path, *, dim: int, max_tokens: int, content_type: str) -> None:
        self.max_tokens = max_tokens
        self._dim = dim
        self._connections = Connections(socket, most=MAX_CONNECTIONS, engine=self.name, content_type=content_type)

    def close(self) -> None:
        """Close all connections. Requests on their way get `ConnectionLostError`."""
        self._connections.close()

    def likeness(self, one: bytes, other: bytes) -> float:
        """Return the cosine of two vectors; NaN if there is none."""
        return cosine(one, other)

    async def healthy(self) -> bool:
        """Return whether the engine has loaded its model."""
        return await self._connections.healthy()
