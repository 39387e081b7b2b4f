"""What the engine asks of a backend: one model that turns small batches of texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from runed.domain.model import ModelInfo

TextInput: TypeAlias = str | Sequence[int]
"""A text, or its tokens as `Embedder.tokenize` gives them, special ones included."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call of `Embedder.embed` may hold: so much, or a single text of any length that the model reads.

    Within these limits, the vector of a text does not depend on the others of its batch.

    Attributes:
        texts: The most texts.
        tokens: The most tokens of all texts together, special tokens included.
    """

    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """The answer to one micro-batch.

    Attributes:
        vectors: One little-endian float32 vector of `ModelInfo.dim` values and L2 norm 1 a text, in the order of the texts.
        tokens: The number of tokens of all texts together, special tokens included.
    """

    vectors: list[bytes]
    tokens: int


class BackendStatus(Enum):
    """What a backend is doing."""

    STOPPED = "stopped"
    """No process; the next embedding starts one."""
    STARTING = "starting"
    """A process loads the model."""
    READY = "ready"
    """A process answers."""
    FAILED = "failed"
    """The process died too often in a row; `BackendState.reason` says why, the next embedding after a pause tries again."""


@dataclass(frozen=True, slots=True)
class BackendState:
    """What a backend is doing, at one moment.

    Attributes:
        status: What it is doing.
        reason: One sentence: why it failed, or what is unusual though it works (a fallback); empty if all is well.
        pid: The process id of the running child, or 0.
        restarts: How many times a child that died was replaced, since the backend was made.
        engine_version: What the engine calls itself, or "".
    """

    status: BackendStatus
    reason: str = ""
    pid: int = 0
    restarts: int = 0
    engine_version: str = ""


class Embedder(Protocol):
    """A backend. All methods are safe to call from many tasks at once."""

    @property
    def model(self) -> ModelInfo:
        """The model, known before the child runs (from the file's metadata)."""
        ...

    @property
    def state(self) -> BackendState:
        """What the backend is doing right now; reading it costs nothing and wakes nothing."""
        ...

    async def start(self) -> None:
        """Start the child if none runs, and wait until it is ready; concurrent calls share one start.

        Raises:
            BackendUnavailableError: It did not come up.
            BackendFaultError: It came up, but failed its self-test.
        """
        ...

    async def stop(self) -> None:
        """End the child, if one runs, and give its memory back; the next `start`, `embed` or `tokenize` brings it up."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """What one micro-batch may hold."""
        ...

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the tokens of each text exactly as `embed` would see it, special tokens included.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            BackendUnavailableError: As `embed`.
        """
        ...

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Embed one micro-batch, starting or restarting the child if need be.

        Calls at once are allowed, but make vectors depend on each other's texts; the engine makes one at a time.

        Args:
            texts: The texts, within `limits`; each has at most `ModelInfo.max_tokens` tokens (the caller counted).

        Returns:
            The vectors, every one checked to be finite and of unit norm.

        Raises:
            BackendUnavailableError: The child died or cannot be reached; `retry_after` says when to try again.
            BackendFaultError: The child answered something that is not an embedding.
        """
        ...
