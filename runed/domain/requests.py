"""Requests of callers and the answers to them: plain data between the faces and the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from runed.errors import RunedError


class Lane(Enum):
    """Queues of the daemon; documented in runed.proto."""

    __hash__ = object.__hash__  # Enum's own is a function of Python, and a lane is looked up many times for each text

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Role(Enum):
    """The use of a text; documented in runed.proto."""

    NONE = "none"
    QUERY = "query"
    DOCUMENT = "document"


class Truncate(Enum):
    """The treatment of a text that is longer than the model reads; documented in runed.proto."""

    NONE = "none"
    END = "end"
    START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """The options of one call.

    Attributes:
        lane: The queue to wait in; None lets the scheduler choose by the size of the call.
        role: The use of the texts.
        instruction: The task of queries; empty means the model's default.
        dimensions: The number of values of a vector; 0 means the model's own.
        truncate: The treatment of a text that is too long.
        with_route: Whether to find the nearest centroid of each text, too.
        model: The name of the model; empty means the default one.
    """

    lane: Lane | None = None
    role: Role = Role.NONE
    instruction: str = ""
    dimensions: int = 0
    truncate: Truncate = Truncate.NONE
    with_route: bool = False
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The vector of one text.

    Attributes:
        vector: Little-endian float32 values of L2 norm 1. The scheduler shortens them to the requested dimensions.
        tokens: The number of tokens that the model read, including those of the prompt and special tokens.
        total_tokens: The number of tokens before anything was cut off.
        cached: Whether the vector was in the cache, or in flight for another caller.
        cluster_id: The nearest centroid, if it was requested.
    """

    vector: bytes
    tokens: int
    total_tokens: int
    cached: bool = False
    cluster_id: int = 0

    @property
    def truncated(self) -> bool:
        """Whether something was cut off."""
        return self.tokens < self.total_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """The space that all vectors of one call lie in.

    Attributes:
        fingerprint: The name of the space.
        prompt: The text in front of each text; may be empty.
        model: The full name of the model.
    """

    fingerprint: str
    prompt: str
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedAnswer:
    """The answer to one call.

    Attributes:
        items: One item a text, in the order of the texts: its embedding, or its error if the caller accepts errors of single
            items.
        space: The space of all vectors.
        centroid_set_version: The set that routed them; empty if no route was requested.
    """

    items: Sequence[Embedding | RunedError]
    space: VectorSpace
    centroid_set_version: str = ""


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One text of a stream.

    Attributes:
        id: The caller's name of it.
        text: The text.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The result of one text of a stream.

    Attributes:
        id: The caller's name of the text.
        outcome: Its embedding, or its error.
    """

    id: str
    outcome: Embedding | RunedError


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """Results of a stream that became ready.

    Attributes:
        results: The results that are ready, in no particular order.
        space: The space of all vectors.
    """

    results: Sequence[StreamResult]
    space: VectorSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class CentroidHeader:
    """The head of a centroid set, as its sender sent it, unchecked.

    Attributes:
        version: The name of the set; empty leaves it to the daemon.
        dim: The number of values of each centroid.
        nlist: The number of centroids.
        preset: The name of the parameters of its construction. If it is set, the version must be the hash of the content.
        model: The name of the model whose vectors are routed; empty means the default one.
    """

    version: str
    dim: int
    nlist: int
    preset: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Centroid:
    """One centroid of a set, unchecked.

    Attributes:
        id: Its position in the set.
        values: Little-endian float32 values.
    """

    id: int
    values: bytes
