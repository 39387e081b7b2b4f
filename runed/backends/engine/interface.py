"""What an engine must offer, so that this room can start, test, ask and replace it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from runed.backends.base import BatchLimits, EmbeddingBatch, TextInput, Tokens
from runed.domain.model import ModelInfo


class ConnectionLostError(Exception):
    """The connection to the server ended before its answer did.

    Attributes:
        unreachable: Whether no connection could be made at all, so that no later request can succeed either.
    """

    def __init__(self, *, unreachable: bool) -> None:
        super().__init__("connection lost")
        self.unreachable = unreachable


class EngineCommand(Protocol):
    """One way to run an engine on a model. Making it starts nothing."""

    @property
    def name(self) -> str:
        """The name of the engine, with which a sentence can begin."""
        ...

    @property
    def executable(self) -> Path:
        """The program, an absolute path."""
        ...

    @property
    def model(self) -> Path:
        """The file of the model. While it changes, no engine is started."""
        ...

    @property
    def socket(self) -> Path:
        """The UNIX socket that the engine listens on."""
        ...

    @property
    def log(self) -> Path:
        """The file for the output of the engine."""
        ...

    @property
    def info(self) -> ModelInfo:
        """The description of the model."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that the engine holds at once."""
        ...

    @property
    def remark(self) -> str:
        """A sentence for people about a fallback, or ""."""
        ...

    @property
    def tuned_at(self) -> str:
        """See `BackendState.tuned_at`."""
        ...

    @property
    def is_replaceable(self) -> bool:
        """Whether another engine can serve in place of this one, so that a failed start is told by a `DeviceError`."""
        ...

    def argv(self) -> list[str]:
        """Return the program and its arguments."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the engine."""
        ...


class EngineInterface(Protocol):
    """Talks to one running engine. Must be made inside the event loop that uses it.

    An error never quotes a text, nor an answer of the engine, which may quote one.

    Attributes:
        name: The name of the engine, with which a sentence can begin.
        samples: Texts for the self-test, the first of which is short. All together fit into a micro-batch.
        max_tokens: The largest number of tokens of one text.
    """

    name: ClassVar[str]
    samples: ClassVar[Sequence[str]]
    max_tokens: int

    def close(self) -> None:
        """Close all connections. Requests on their way get `ConnectionLostError`."""
        ...

    def likeness(self, one: bytes, other: bytes) -> float:
        """Return how much two answers to one text are alike: 1 if they are equal; NaN if they cannot be compared."""
        ...

    async def healthy(self) -> bool:
        """Return whether the engine has loaded its model."""
        ...

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text as `embed` would see it, including special tokens.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        ...

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token.

        Raises:
            BackendFaultError: The answer makes no sense.
            ConnectionLostError: There was no complete answer.
        """
        ...

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Embed a batch of texts, or of their tokens. Return one vector a text, in their order, each checked.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            TextTooLongError: A text has more tokens than the engine takes.
            BackendFaultError: The answer is not one unit vector of the right length for each text.
            ConnectionLostError: There was no complete answer.
        """
        ...
