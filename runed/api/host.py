"""The interface of the daemon that all its faces use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol

from runed.domain.history import LastHour
from runed.domain.model_status import ModelRoom, ModelStatus, Tokenized
from runed.domain.ranking import RerankAnswer, RerankOptions
from runed.domain.requests import Centroid, CentroidHeader, EmbedAnswer, EmbedOptions, StreamAnswer, StreamItem
from runed.domain.status import Health, Info


class CountCall(Protocol):
    """Counts a call of any kind that has ended."""

    def __call__(
        self, method: str, code: str, seconds: float, reason: str = "", texts: Mapping[str, int] | None = None
    ) -> None:
        """Count a call.

        Args:
            method: The name of its method, or the path of its route. There are few of them, whatever clients send.
            code: "ok", or the code of its error in the contract.
            seconds: The time from its head to its answer.
            reason: The reason of its error, or "".
            texts: The number of texts that were answered with errors of their own, by reason.
        """
        ...


def count_nothing(method: str, code: str, seconds: float, reason: str = "", texts: Mapping[str, int] | None = None) -> None:
    """Do nothing, for a host without metrics."""


class Host(Protocol):
    """One daemon.

    The calls that need a model (`embed`, `embed_stream`, `count_tokens`, `tokenize`, `rerank`, `set_centroids`, `warm_up`)
    raise `RunedError`. They name it in their options or arguments; "" means the default model, and for `rerank` the only
    installed reranker. A name that does not exist raises `UnknownModelError` everywhere.

    While the model is being looked up or its engine starts, they wait; while something is being downloaded, they raise
    `BootstrappingError` at once. If a caller leaves, cancels or passes its deadline, its coroutine is cancelled or its
    generator is closed.
    """

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call.

        Args:
            texts: The texts, unchecked.
            options: The options of the call.
            client: The name of the caller's connection; texts of different clients take turns.
            per_item_errors: Whether a text that cannot be embedded has its error in the answer, instead of failing the call.
        """
        ...

    def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Embed texts as they come, and yield their vectors as they are ready.

        Args:
            chunks: The texts, unchecked. They are read while there is room for them, until the generator is closed. An error
                that they raise ends the stream.
            options: The options of the stream.
            client: As for `embed`.
        """
        ...

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count the tokens of each text, including those of its prompt and special tokens."""
        ...

    async def rerank(self, query: str, documents: Sequence[str], options: RerankOptions, *, client: str) -> RerankAnswer:
        """Rank documents by their relevance to a query.

        Args:
            query: The query, unchecked.
            documents: The documents, unchecked.
            options: The options of the call.
            client: As for `embed`.
        """
        ...

    async def tokenize(self, texts: Sequence[str], options: EmbedOptions, *, special: bool = True) -> Tokenized:
        """Return the tokens of each text, including those of its prompt.

        Args:
            texts: The texts, unchecked.
            options: The options of the call.
            special: Whether to include the special tokens that the tokenizer puts around each text.
        """
        ...

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Replace the set of routing centroids.

        Args:
            header: The sender's description of the set, unchecked.
            batches: The centroids in the order of their ids. A batch is valid until the next one is requested.

        Returns:
            The version of the set.
        """
        ...

    async def warm_up(self, model: str = "") -> None:
        """Start the engine ahead of the first text. Return when it has loaded its model."""
        ...

    async def unload(self, model: str = "") -> None:
        """Stop the engine of a model.

        Raises:
            ModelBusyError: It works.
        """
        ...

    async def pull(self, model: str = "") -> None:
        """Begin to install a model that is not there, and return at once. `health` tells the progress."""
        ...

    async def settle(self, model: str = "") -> None:
        """Wait while a model is being looked up; return at once while something is being downloaded, or after a failure.

        Raises:
            UnknownModelError: There is no model of this name.
            ModelNotInstalledError: The model is not the default one, and its file is not on this machine.
        """
        ...

    async def models(self) -> list[ModelStatus]:
        """Describe all models that requests may name, the default one first, then by name.

        Raises:
            RunedError: They cannot be known, since the manifest cannot be had.
        """
        ...

    async def model(self, name: str = "") -> ModelStatus:
        """Describe a model.

        Raises:
            RunedError: As for `models`.
        """
        ...

    def room(self) -> ModelRoom:
        """Describe the bounds of all engines."""
        ...

    def info(self, model: str = "") -> Info:
        """Describe the daemon and, once it is known, a model."""
        ...

    def health(self, model: str = "", *, detailed: bool = False) -> Health:
        """Describe the present state of the daemon and of a model.

        Args:
            model: The model.
            detailed: Whether to describe all models that were asked for, and the clients that are connected.
        """
        ...

    def metrics(self) -> bytes:
        """Return the metrics as `runed.metrics.CONTENT_TYPE`."""
        ...

    def last_hour(self, since: int = 0) -> LastHour:
        """Return what is remembered of the last hour.

        Args:
            since: A number of a slot. Later slots alone are returned.
        """
        ...

    def shut_down(self, grace: float | None) -> None:
        """Begin to drain.

        Args:
            grace: Seconds that the calls in flight may take; None means the default.
        """
        ...
