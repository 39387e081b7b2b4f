"""Protocols of backends: the `Embedder`, which turns small batches of texts into vectors, and three optional capabilities."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias

from runed.domain.model import ModelInfo

Tokens: TypeAlias = "array[int]"
"""The ids of the tokens of a text, 4 bytes each. In a list they would take nine times as much, in pieces that Python keeps."""

TextInput: TypeAlias = "str | Tokens"


def pack(ids: Iterable[int]) -> Tokens:
    """Return the ids of tokens in the form of `Tokens`."""
    return array("i", ids)


"""A text, or its tokens as `Tokenizer.tokenize` returns them, including special tokens."""


PAIR_SEPARATOR = "\0"
"""The character between query and document of a pair. No text has it."""


def pair(query: str, document: str) -> str:
    """Return the text that stands for a query and a document before a `PairBackend`."""
    return f"{query}{PAIR_SEPARATOR}{document}"


class Counting(Enum):
    """What a backend knows of the tokens of a text."""

    EACH = "each"
    """Those of each text, exactly and cheaply."""
    ASKED = "asked"
    """Those of each text, but a question costs a request over a network. So only a text that may be too long is counted. Of a
    batch, the sum is known."""
    SUM = "sum"
    """Nothing but the sum of a batch, if even that. The engine itself refuses a text that is too long."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one call of `Embedder.embed`.

    Only a batch of one text may exceed them. Within these limits, the vector of a text does not depend on the other texts of
    its batch.

    Attributes:
        texts: The most texts.
        tokens: The most tokens of all texts together, including special tokens.
        by_estimate: Whether it is enough to estimate the tokens: a batch of more is as right, and not much slower.
        counted: Whether each answer tells the tokens of each text, so that nobody has to count them.
        flights: The most calls at once of an engine on another machine. It uses no processor of this one, and a batch is
            cancelled when nobody waits for it any more. 0 for an engine of this machine, which computes one batch at a time.
        counting: What the backend knows of the tokens of a text.
    """

    texts: int
    tokens: int
    by_estimate: bool = False
    counted: bool = False
    flights: int = 0
    counting: Counting = Counting.EACH


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """The answer to one micro-batch.

    Attributes:
        vectors: One little-endian float32 vector of `ModelInfo.dim` values and L2 norm 1 a text, in the order of the texts.
        tokens: The number of tokens of all texts together, including special tokens; 0 if the engine does not tell.
        counts: The number of tokens of each text; empty if the engine does not tell it.
    """

    vectors: list[bytes]
    tokens: int
    counts: Sequence[int] = ()


class BackendStatus(Enum):
    """The state of a backend's engine."""

    STOPPED = "stopped"
    """No process runs; the next embedding starts one."""
    STARTING = "starting"
    """A process loads the model."""
    READY = "ready"
    """A process answers."""
    SILENT = "silent"
    """A process owes an answer and does nothing; `BackendState.reason` tells for how long. It is replaced soon, unless it goes
    on."""
    FAILED = "failed"
    """The process died too often in a row; `BackendState.reason` tells the reason. The next embedding after a pause tries
    again."""
    SPACE_CHANGED = "space changed"
    """An engine on another machine gives vectors of another space than before."""
    DEVICE_FAILED = "device failed"
    """The device failed while the engine started, or gave wrong vectors. Another engine has to serve in place of this one."""


@dataclass(frozen=True, slots=True)
class BackendState:
    """The state of a backend at one moment.

    Attributes:
        status: The state of its engine.
        reason: One sentence on the failure or the silence, or on a fallback of a working engine; empty if all is well.
        pid: The process id of the engine; 0 while none runs, and for a backend that is not `Managed`.
        restarts: The number of times that a dead engine was replaced, since the backend was made.
        wakeups: The number of times that a stopped engine was started, since the backend was made.
        waking_seconds: The time of all these starts together.
        company_cosine: The smallest cosine between the vectors of a text alone and beside others that the last self-test found;
            0 before the first one.
        tuned_at: The time at which the settings of the engine were measured on this machine, in ISO 8601; "" for built-in ones.
        program: The path of the engine's program; None for a backend that is not `Managed`.
        context: The most tokens that the engine holds at once; 0 if it does not tell.
    """

    status: BackendStatus
    reason: str = ""
    pid: int = 0
    restarts: int = 0
    wakeups: int = 0
    waking_seconds: float = 0.0
    company_cosine: float = 0.0
    tuned_at: str = ""
    program: Path | None = None
    context: int = 0


class Embedder(Protocol):
    """Turns micro-batches of texts into vectors. All methods are safe to call from many tasks at once."""

    @property
    def model(self) -> ModelInfo:
        """The model. It is known before an engine runs, from the metadata of the model's file."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """The limits of one micro-batch."""
        ...

    @property
    def state(self) -> BackendState:
        """The present state. Reading it is cheap and does not start an engine."""
        ...

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """Embed one micro-batch, and start or restart the engine if need be.

        Concurrent calls are allowed, but then vectors depend on the texts of the other calls. The scheduler makes one call at a
        time.

        Args:
            texts: The texts, within `limits`. Each has at most `ModelInfo.max_tokens` tokens, as the caller has counted.

        Returns:
            The vectors. Each was checked to be finite and of L2 norm 1.

        Raises:
            BackendUnavailableError: The engine cannot be had; `retry_after` says when to try again.
            BackendFaultError: A text is to blame: a sound engine gives no embedding of it, or dies of it.
        """
        ...


class Tokenizer(Protocol):
    """A capability of a backend: it knows the exact tokens of a text."""

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text exactly as `Embedder.embed` would see it, including special tokens.

        Raises:
            InvalidTextError: A text is not valid Unicode.
            BackendError: As `Embedder.embed`.
        """
        ...


class Speller(Protocol):
    """A capability of a backend: it knows the text of a token."""

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token. A part of a character is written as U+FFFD.

        Raises:
            BackendError: As `Embedder.embed`.
        """
        ...


class Managed(Protocol):
    """A capability of a backend: this daemon starts and stops its engine. `BackendState` tells its pid and restarts."""

    async def start(self) -> None:
        """Start the engine if none runs, and wait until it is ready. Concurrent calls share one start.

        Raises:
            BackendUnavailableError: It did not come up.
            BackendFaultError: It came up, but failed its self-test.
        """
        ...

    async def stop(self) -> None:
        """Stop the engine, if one runs, to free its memory. The next `start`, `embed` or `tokenize` starts it again."""
        ...


class CountingEmbedder(Embedder, Tokenizer, Protocol):
    """An Embedder that is a Tokenizer.

    The scheduler needs exact tokens: to refuse or cut a long text, to pack a batch, and to tell the tokens of one text.
    """


class LocalBackend(CountingEmbedder, Speller, Managed, Protocol):
    """A backend with all capabilities.

    The scheduler needs them to count and to tell tokens, and to stop the engine of an idle daemon.
    """


class PairBackend(LocalBackend, Protocol):
    """A reranker: it scores pairs of a query and a document, each written by `pair`.

    `embed` returns the score of a pair, one little-endian float32, in the place of a vector. `tokenize` returns as many tokens
    of a pair as `embed` reads; of a text that is no pair, it returns the tokens without special ones.
    """

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens of a document.

        Raises:
            BackendError: As `Embedder.embed`.
        """
        ...
