"""runed as an embedding model and a reranker of LlamaIndex; needs the extra `runed[llama-index]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from runed.client.options import Lane, Truncate
from runed.extras import missing
from runed.integrations.lazy_client import LazyClient, as_text, floats, lists_of_floats

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from pydantic import BeforeValidator
except ModuleNotFoundError as error:
    raise missing("llama-index-core", "llama-index") from error

if TYPE_CHECKING:
    from runed.client.types import RerankResult

_Path: TypeAlias = Annotated[str | os.PathLike[str] | None, BeforeValidator(as_text)]


class RunedEmbedding(BaseEmbedding):
    """Embeddings by the daemon of this machine, which is started if none runs.

        Settings.embed_model = RunedEmbedding()

    Texts of nodes get the model's prompt for documents, and queries that for queries. An object may be used by any number of
    threads, event loops and forked processes, and copied and pickled; it connects when the first text comes. Errors are those
    of `runed.Client`. A wrong option fails at once, other errors come when texts are embedded.

    The nodes of LlamaIndex's own splitters have 1,024 tokens at most, and runed reads 2,048.
    """

    model_name: str = Field(default="runed", description="A name to show; `model` chooses the model.")
    embed_batch_size: int = Field(
        default=256,
        description="The number of texts of a request. Not of a batch in the engine, which the daemon makes by itself.",
        gt=0,
        le=2048,
    )
    dimensions: int | None = Field(default=None, frozen=True, description="The number of values of a vector; None means all.")
    instruction: str = Field(
        default="", frozen=True, description="The task of queries, in one English sentence; empty: the model's default."
    )
    truncate: Truncate = Field(
        default="none",
        frozen=True,
        description='The treatment of a text that is longer than the model reads: "none" refuses it, "end" and "start" cut it.',
    )
    lane: Lane | None = Field(
        default=None, frozen=True, description='The queue to wait in, "interactive" or "bulk"; None: by the number of texts.'
    )
    model: str | None = Field(
        default=None, frozen=True, description="The name of the model; None means the daemon's default model."
    )
    home: _Path = Field(
        default=None, frozen=True, description="The directory of the daemon, instead of RUNED_HOME or ~/.runed."
    )
    socket_path: _Path = Field(
        default=None, frozen=True, description="The socket of a daemon that is managed elsewhere; it is never started."
    )
    timeout: float | None = Field(
        default=None, frozen=True, description="Seconds that a call may take, including waiting; None: no limit."
    )

    _client: LazyClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401 # pydantic's signature
        """Check the options. Pydantic's constructor calls this."""
        super().model_post_init(context)
        self._client = LazyClient(
            dimensions=self.dimensions,
            instruction=self.instruction,
            truncate=self.truncate,
            lane=self.lane,
            model=self.model,
            home=self.home,
            socket_path=self.socket_path,
            timeout=self.timeout,
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialized settings keep."""
        return "RunedEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return floats(self._client.embed(query, "query"))

    def _get_text_embedding(self, text: str) -> list[float]:
        return floats(self._client.embed(text, "document"))

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return lists_of_floats(self._client.embed_batch(texts, "document"))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return floats(await self._client.aembed(query, "query"))

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return floats(await self._client.aembed(text, "document"))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return lists_of_floats(await self._client.aembed_batch(texts, "document"))

    def close(self) -> None:
        """Close the connections of blocking calls. This happens by itself when the object goes."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        await self._client.aclose()


class RunedRerank(BaseNodePostprocessor):
    """A reranker by the daemon of this machine, which is started if none runs.

        engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[RunedRerank(top_n=3)])

    The nodes come back in the order of their relevance, each with a score from 0 to 1. Blank nodes are left out. Otherwise an
    object behaves as `RunedEmbedding`.
    """

    top_n: int | None = Field(default=None, ge=1, frozen=True, description="The most nodes to keep; None keeps all.")
    model: str = Field(default="", frozen=True, description="The name of a reranker; empty means the daemon's only one.")
    truncate: Truncate = Field(
        default="none",
        frozen=True,
        description='The treatment of a node that is longer than the model reads: "none" refuses it, "end" and "start" cut it.',
    )
    lane: Lane | None = Field(
        default=None, frozen=True, description='The queue to wait in, "interactive" or "bulk"; None: by the number of nodes.'
    )
    home: _Path = Field(
        default=None, frozen=True, description="The directory of the daemon, instead of RUNED_HOME or ~/.runed."
    )
    socket_path: _Path = Field(
        default=None, frozen=True, description="The socket of a daemon that is managed elsewhere; it is never started."
    )
    timeout: float | None = Field(
        default=None, frozen=True, description="Seconds that a call may take, including waiting; None: no limit."
    )

    _client: LazyClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401 # pydantic's signature
        """Check the options. Pydantic's constructor calls this."""
        super().model_post_init(context)
        self._client = LazyClient(
            truncate=self.truncate, lane=self.lane, home=self.home, socket_path=self.socket_path, timeout=self.timeout
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialized settings keep."""
        return "RunedRerank"

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:
        query, texts = _question(nodes, query_bundle)
        return _ranked(nodes, self._client.rerank(query, texts, top_n=self.top_n, model=self.model))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _question(nodes, query_bundle)
        return _ranked(nodes, await self._client.arerank(query, texts, top_n=self.top_n, model=self.model))

    def close(self) -> None:
        """Close the connections of blocking calls. This happens by itself when the object goes."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        await self._client.aclose()


def _question(nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> tuple[str, list[str]]:
    """Return the query, and the text of each node that an embedding model would read."""
    if query_bundle is None:
        raise ValueError("a reranker needs the query: give query_bundle or query_str")
    return query_bundle.query_str, [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _ranked(nodes: Sequence[NodeWithScore], results: Sequence[RerankResult]) -> list[NodeWithScore]:
    return [NodeWithScore(node=nodes[result.index].node, score=result.score) for result in results]
