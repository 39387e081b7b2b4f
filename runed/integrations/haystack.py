"""runed as embedders and a ranker of Haystack; needs the extra `runed[haystack]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runed.client.options import Lane, Truncate
from runed.extras import missing
from runed.integrations.lazy_client import LazyClient, as_text, floats, lists_of_floats

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise missing("haystack-ai", "haystack") from error

if TYPE_CHECKING:
    from runed.client.types import RerankResult, Vectors


class _Component:
    """What the three components share: their arguments, which a pipeline writes into its file, and their connections."""

    def _keep(self, client: LazyClient, arguments: dict[str, Any]) -> None:
        """Keep what a constructor has made. It cannot use `super()`, since Haystack's decorator makes another class."""
        self._client = client
        self._arguments = arguments | {name: as_text(arguments[name]) for name in ("home", "socket_path")}

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, as `Pipeline.dumps` writes them. None of them is a secret."""
        return default_to_dict(self, **self._arguments)

    def close(self) -> None:
        """Close the connections of blocking calls. This happens by itself when the object goes."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, too. This happens by itself when the loop ends."""
        await self._client.aclose()


@component
class RunedTextEmbedder(_Component):
    """Embeds a query by the daemon of this machine, which is started if none runs.

        pipeline.add_component("embedder", RunedTextEmbedder())
        pipeline.connect("embedder.embedding", "retriever.query_embedding")

    The query gets the model's prompt for queries. An object may be used by any number of threads, event loops and forked
    processes, and copied; it connects when the first text comes. Errors are those of `runed.Client`. A wrong argument fails at
    once, other errors come when a text is embedded. An empty text is refused, since it has no vector.

    Args:
        dimensions: The number of values of a vector; None means all.
        instruction: The task of queries, in one English sentence; empty: the model's default.
        truncate: The treatment of a text that is longer than the model reads. "none" refuses it, so that no vector silently
            covers only a part of a text; "end" and "start" cut off that side of it.
        lane: The queue to wait in, "interactive" or "bulk"; None: by the number of texts.
        model: The name of the model; None: the daemon's default model.
        home: The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`.
        socket_path: The socket of a daemon that is managed elsewhere; it is never started.
        timeout: Seconds that a call may take, including waiting; None: no limit.

    Raises:
        RunedError: An argument has a value that is not accepted.
    """

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        instruction: str = "",
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        home: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        arguments = {
            "dimensions": dimensions,
            "instruction": instruction,
            "truncate": truncate,
            "lane": lane,
            "model": model,
            "home": home,
            "socket_path": socket_path,
            "timeout": timeout,
        }
        self._keep(LazyClient(**arguments), arguments)  # type: ignore[arg-type] # one type for all values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunedTextEmbedder:
        """Make the component of the file of a pipeline."""
        return default_from_dict(cls, data)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            `embedding`, the vector.
        """
        return {"embedding": floats(self._client.embed(text, "query"))}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query without blocking the event loop; see `run`."""
        return {"embedding": floats(await self._client.aembed(text, "query"))}


@component
class RunedDocumentEmbedder(_Component):
    """Embeds documents by the daemon of this machine, which is started if none runs.

        pipeline.add_component("embedder", RunedDocumentEmbedder(meta_fields_to_embed=["title"]))
        pipeline.connect("embedder.documents", "writer.documents")

    Documents get the model's prompt for documents. A document without text is refused. Otherwise an object behaves as
    `RunedTextEmbedder`.

    Args:
        meta_fields_to_embed: The names of metadata to put in front of the text of a document; empty values are left out.
        embedding_separator: The characters between these and the text.
        dimensions: See `RunedTextEmbedder`.
        truncate: See `RunedTextEmbedder`.
        lane: See `RunedTextEmbedder`.
        model: See `RunedTextEmbedder`.
        home: See `RunedTextEmbedder`.
        socket_path: See `RunedTextEmbedder`.
        timeout: See `RunedTextEmbedder`.

    Raises:
        RunedError: An argument has a value that is not accepted.
    """

    def __init__(
        self,
        *,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        home: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        arguments = {
            "dimensions": dimensions,
            "truncate": truncate,
            "lane": lane,
            "model": model,
            "home": home,
            "socket_path": socket_path,
            "timeout": timeout,
        }
        layout = {"meta_fields_to_embed": list(meta_fields_to_embed), "embedding_separator": embedding_separator}
        self._keep(LazyClient(**arguments), arguments | layout)  # type: ignore[arg-type] # one type for all values
        self._fields, self._separator = tuple(meta_fields_to_embed), embedding_separator

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunedDocumentEmbedder:
        """Make the component of the file of a pipeline."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents, in their order.

        Args:
            documents: Any number of documents. They stay as they are.

        Returns:
            `documents`, copies with vectors.
        """
        return _embedded(documents, self._client.embed_batch(self._texts(documents), "document"))

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents without blocking the event loop; see `run`."""
        return _embedded(documents, await self._client.aembed_batch(self._texts(documents), "document"))

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return [
            self._separator.join(
                [*(str(value) for name in self._fields if (value := document.meta.get(name))), document.content or ""]
            )
            for document in documents
        ]


@component
class RunedRanker(_Component):
    """Sorts documents by their relevance to a query, by the daemon of this machine, which is started if none runs.

        pipeline.add_component("ranker", RunedRanker(top_k=3))
        pipeline.connect("retriever.documents", "ranker.documents")

    The documents come back in the order of their relevance, each with a score from 0 to 1. Those without text are left out.
    Otherwise an object behaves as `RunedTextEmbedder`.

    Args:
        top_k: The most documents to keep; None keeps all.
        model: The name of a reranker; empty means the daemon's only one.
        truncate: The treatment of a document that is longer than the model reads; see `RunedTextEmbedder`.
        lane: See `RunedTextEmbedder`.
        home: See `RunedTextEmbedder`.
        socket_path: See `RunedTextEmbedder`.
        timeout: See `RunedTextEmbedder`.

    Raises:
        RunedError: An argument has a value that is not accepted.
    """

    def __init__(
        self,
        *,
        top_k: int | None = None,
        model: str = "",
        truncate: Truncate = "none",
        lane: Lane | None = None,
        home: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; accepted is 1 or more, or None for all documents")
        client = LazyClient(truncate=truncate, lane=lane, home=home, socket_path=socket_path, timeout=timeout)
        arguments = {
            "top_k": top_k,
            "model": model,
            "truncate": truncate,
            "lane": lane,
            "home": home,
            "socket_path": socket_path,
            "timeout": timeout,
        }
        self._keep(client, arguments)
        self._top_k, self._model = top_k, model

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunedRanker:
        """Make the component of the file of a pipeline."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Sort documents.

        Args:
            query: The query.
            documents: Any number of documents. They stay as they are.
            top_k: The most documents to keep, instead of the constructor's.

        Returns:
            `documents`, copies with scores, the best one first.
        """
        texts = [document.content or "" for document in documents]
        results = self._client.rerank(query, texts, top_n=top_k or self._top_k, model=self._model)
        return {"documents": _ranked(documents, results)}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Sort documents without blocking the event loop; see `run`."""
        texts = [document.content or "" for document in documents]
        results = await self._client.arerank(query, texts, top_n=top_k or self._top_k, model=self._model)
        return {"documents": _ranked(documents, results)}


def _embedded(documents: Sequence[Document], vectors: Vectors) -> dict[str, Any]:
    pairs = zip(documents, lists_of_floats(vectors), strict=True)
    return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}


def _ranked(documents: Sequence[Document], results: Sequence[RerankResult]) -> list[Document]:
    return [replace(documents[result.index], score=result.score) for result in results]
