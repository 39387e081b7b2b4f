"""What every face of the daemon asks of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Protocol

from runed.domain.requests import Centroid, CentroidHeader, EmbedAnswer, EmbedOptions, StreamAnswer, StreamItem
from runed.domain.status import Health, Info


class Host(Protocol):
    """What the service asks of the daemon.

    A caller that goes, gives up or whose deadline passes has its coroutine cancelled, or its generator closed.
    """

    async def embed(
        self, texts: Sequence[str], options: EmbedOptions, *, client: str, per_item_errors: bool = False
    ) -> EmbedAnswer:
        """Embed the texts of one call; raises `RunedError`.

        Args:
            texts: The texts, unchecked.
            options: How to embed them.
            client: Tells callers apart.
            per_item_errors: Whether a text that cannot be embedded has its error in the answer, instead of failing the call.
        """
        ...

    def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: EmbedOptions, *, client: str
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Embed texts as they come and give their vectors as they are ready; raises `RunedError`.

        Args:
            chunks: The texts, unchecked. Not to be read further than there is room for; what it raises ends the stream. Nobody
                may read it any more once the generator is closed.
            options: How to embed them.
            client: Tells callers apart.
        """
        ...

    async def count_tokens(self, texts: Sequence[str], options: EmbedOptions) -> list[int]:
        """Count the tokens of each text, with its prompt and special ones; raises `RunedError`."""
        ...

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Replace the set of routing centroids; raises `RunedError`.

        Args:
            header: What the sender says of the set, unchecked.
            batches: The centroids in the order in which they come; a batch is of no use once the next one is asked for.

        Returns:
            What the set is called.
        """
        ...

    def info(self) -> Info:
        """Tell what the daemon and its model are."""
        ...

    def health(self) -> Health:
        """Tell what the daemon is doing right now."""
        ...

    def metrics(self) -> bytes:
        """Give the numbers of the engine as `runed.metrics.CONTENT_TYPE`."""
        ...

    def shut_down(self, grace: float | None) -> None:
        """Begin to drain; `grace` in seconds, None for the default."""
        ...
