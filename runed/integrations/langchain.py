"""runed as an embedding model and a reranker of LangChain; needs the extra `runed[langchain]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

from runed.client.options import Lane, Truncate
from runed.extras import missing
from runed.integrations.lazy_client import LazyClient, as_text, floats, lists_of_floats

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
except ModuleNotFoundError as error:
    raise missing("langchain-core", "langchain") from error

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks

    from runed.client.types import RerankResult

_Path: TypeAlias = Annotated[str | os.PathLike[str] | None, BeforeValidator(as_text)]


class RunedEmbeddings(BaseModel, Embeddings):
    """Embeddings by the daemon of this machine, which is started if none runs.

        embeddings = RunedEmbeddings()
        store = InMemoryVectorStore(embeddings)

    Documents get the model's prompt for documents, and queries that for queries. An object may be used by any number of
    threads, event loops and forked processes, and copied and pickled; it connects when the first text comes.

    Errors are those of `runed.Client`. A wrong option fails at once, other errors come when texts are embedded. An empty text
    is refused, since it has no vector.

    Attributes:
        dimensions: The number of values of a vector; None means all.
        instruction: The task of queries, in one English sentence; empty: the model's default.
        truncate: The treatment of a text that is longer than the model reads. "none" refuses it, so that no vector silently
            covers only a part of a text; "end" and "start" cut off that side of it.
        lane: The queue to wait in, "interactive" or "bulk"; None: by the number of texts.
        model: The name of the model; None: the daemon's default model.
        home: The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`.
        socket_path: The socket of a daemon that is managed elsewhere; it is never started.
        timeout: Seconds that a call may take, including waiting; None: no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: int | None = None
    instruction: str = ""
    truncate: Truncate = "none"
    lane: Lane | None = None
    model: str | None = None
    home: _Path = None
    socket_path: _Path = None
    timeout: float | None = None

    _client: LazyClient = PrivateAttr()

    def model_post_init(self, context: object, /) -> None:
        """Check the options. Pydantic's constructor calls this."""
        super().model_post_init(context)
        self._client = LazyClient(**self.model_dump())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed any number of documents, in their order."""
        return lists_of_floats(self._client.embed_batch(texts, "document"))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        return floats(self._client.embed(text, "query"))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop."""
        return lists_of_floats(await self._client.aembed_batch(texts, "document"))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop."""
        return floats(await self._client.aembed(text, "query"))

    def close(self) -> None:
        """Close the connections of blocking calls. This happens by itself when the object goes."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        await self._client.aclose()


class RunedReranker(BaseDocumentCompressor):
    """A reranker by the daemon of this machine, which is started if none runs.

        retriever = ContextualCompressionRetriever(base_compressor=RunedReranker(top_n=3), base_retriever=store.as_retriever())

    The documents come back in the order of their relevance, each with its score from 0 to 1 as `relevance_score` of its
    metadata. Blank documents are left out. Otherwise an object behaves as `RunedEmbeddings`.

    Attributes:
        top_n: The most documents to keep; None keeps all.
        model: The name of a reranker; empty means the daemon's only one.
        truncate: The treatment of a document that is longer than the model reads; see `RunedEmbeddings`.
        lane: See `RunedEmbeddings`.
        home: See `RunedEmbeddings`.
        socket_path: See `RunedEmbeddings`.
        timeout: See `RunedEmbeddings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_n: int | None = Field(default=None, ge=1)
    model: str = ""
    truncate: Truncate = "none"
    lane: Lane | None = None
    home: _Path = None
    socket_path: _Path = None
    timeout: float | None = None

    _client: LazyClient = PrivateAttr()

    def model_post_init(self, context: object, /) -> None:
        """Check the options. Pydantic's constructor calls this."""
        super().model_post_init(context)
        self._client = LazyClient(**self.model_dump(exclude={"top_n", "model"}))

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 # LangChain's signature
    ) -> Sequence[Document]:
        """Return the best documents, the best one first."""
        texts = [document.page_content for document in documents]
        return _ranked(documents, self._client.rerank(query, texts, top_n=self.top_n, model=self.model))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 # as above
    ) -> Sequence[Document]:
        """Return the best documents without blocking the event loop."""
        texts = [document.page_content for document in documents]
        return _ranked(documents, await self._client.arerank(query, texts, top_n=self.top_n, model=self.model))

    def close(self) -> None:
        """Close the connections of blocking calls. This happens by itself when the object goes."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        await self._client.aclose()


def _ranked(documents: Sequence[Document], results: Sequence[RerankResult]) -> list[Document]:
    """Return copies of the documents with their scores, since those of the caller may be of a store."""
    return [
        documents[result.index].model_copy(
            update={"metadata": {**documents[result.index].metadata, "relevance_score": result.score}}
        )
        for result in results
    ]
