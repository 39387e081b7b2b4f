"""runed as an embedding function of Chroma; needs the extra `runed[chroma]`."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, cast

from runed.client.options import Lane, Role, Truncate
from runed.extras import missing
from runed.integrations.lazy_client import LazyClient

try:
    from chromadb.api.types import Documents, Embeddable, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ModuleNotFoundError as error:
    raise missing("chromadb", "chroma") from error


class RunedEmbeddingFunction(EmbeddingFunction[Embeddable]):
    """Embeddings by the daemon of this machine, which is started if none runs.

        collection = client.create_collection("notes", embedding_function=RunedEmbeddingFunction())

    Added texts are embedded as documents, and `query_texts` as queries, each with the model's own prompt. Vectors have length
    1, so the default distance is the cosine. Chroma keeps the arguments in the collection. It makes the function again if this
    module is imported.

    An object may be used by any number of threads and forked processes; it connects when the first text comes. Errors are those
    of `runed.Client`. A wrong argument fails at once, other errors come when texts are embedded.

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
        self._config: dict[str, Any] = {
            "dimensions": dimensions,
            "instruction": instruction,
            "truncate": truncate,
            "lane": lane,
            "model": model,
            "home": None if home is None else os.fspath(home),
            "socket_path": None if socket_path is None else os.fspath(socket_path),
            "timeout": timeout,
        }
        self._client = _shared_client(**self._config)

    def __call__(self, input: Embeddable) -> Embeddings:  # noqa: A002 # Chroma's name
        """Embed documents, in their order."""
        return self._embed(input, "document")

    def embed_query(self, input: Embeddable) -> Embeddings:  # noqa: A002 # Chroma's name
        """Embed queries, in their order."""
        return self._embed(input, "query")

    @staticmethod
    def name() -> str:
        """Return the name that a collection keeps."""
        return "runed"

    def default_space(self) -> Space:
        """Return the space of a collection that names none."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return the spaces in which vectors of length 1 can be compared: all of them, with the same order."""
        return ["cosine", "l2", "ip"]

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> RunedEmbeddingFunction:
        """Make the function of a collection again, from its arguments."""
        return RunedEmbeddingFunction(**config)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, which Chroma keeps in the collection."""
        return dict(self._config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Make sure that a collection with other arguments can still compare its vectors.

        Raises:
            ValueError: The dimensions or the model would differ.
        """
        for name in ("dimensions", "model"):
            if new_config.get(name) != old_config.get(name):
                raise ValueError(
                    f"the vectors of the collection have {name}={old_config.get(name)} and are not comparable to those of "
                    f"{name}={new_config.get(name)}; make another collection"
                )

    def close(self) -> None:
        """Close the connections, which functions of the same arguments share; a later call makes new ones."""
        self._client.close()

    def _embed(self, texts: Embeddable, role: Role) -> Embeddings:
        # Chroma's methods take functions of texts and images alike. An image is refused as everything that is no str.
        return list(self._client.embed_batch(cast("Documents", texts), role))


# Chroma makes the function of a collection again for each query. Connecting anew each time took 5 ms more.
_shared_client = lru_cache(maxsize=16)(LazyClient)

register_embedding_function(RunedEmbeddingFunction)  # type: ignore[no-untyped-call] # Chroma's has no types
