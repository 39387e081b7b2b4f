"""The traits of known families of models, by the names in their files and by their architecture.

The prompts and dimensions are those of the model cards.
"""

from __future__ import annotations

import re

from runed.domain.model import INSTRUCTION_PLACE, ModelInfo, ModelTraits, OwnTraits

_SEARCHING = "Represent this sentence for searching relevant passages: "

_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

_QWEN3_EMBEDDING = ModelTraits(
    query_prompt=f"Instruct: {INSTRUCTION_PLACE}\nQuery:", default_instruction=_WEB_SEARCH, min_dimensions=32
)

_INSTRUCTED = ModelTraits(query_prompt=f"Instruct: {INSTRUCTION_PLACE}\nQuery: ", default_instruction=_WEB_SEARCH)

_EMBEDDING_GEMMA = ModelTraits(
    query_prompt="task: search result | query: ", document_prompt="title: none | text: ", min_dimensions=128
)

_JINA_V3 = ModelTraits(
    query_prompt="Represent the query for retrieving evidence documents: ",
    document_prompt="Represent the document for retrieval: ",
    min_dimensions=32,
)


def _nomic(min_dimensions: int) -> ModelTraits:
    return ModelTraits(query_prompt="search_query: ", document_prompt="search_document: ", min_dimensions=min_dimensions)


_BY_NAME = tuple(
    (re.compile(rf"(?:^|-){pattern}"), traits)
    for pattern, traits in (
        ("qwen3-embedding", _QWEN3_EMBEDDING),
        ("embedding-?gemma", _EMBEDDING_GEMMA),
        ("nomic-embed-text-v2", _nomic(256)),
        ("nomic-embed-text-v1-5", _nomic(64)),
        ("nomic-embed-text", _nomic(0)),
        ("jina-embeddings-v5", ModelTraits(query_prompt="Query: ", document_prompt="Document: ", min_dimensions=32)),
        ("jina-embeddings-v4", ModelTraits(query_prompt="Query: ", document_prompt="Passage: ", min_dimensions=128)),
        ("jina-embeddings-v3", _JINA_V3),
        ("jina-embedding", ModelTraits()),
        ("arctic-embed-[a-z]+-v2", ModelTraits(query_prompt="query: ", min_dimensions=256)),
        ("arctic-embed-m-v1-5", ModelTraits(query_prompt=_SEARCHING, min_dimensions=256)),
        ("arctic-embed", ModelTraits(query_prompt=_SEARCHING)),
        ("e5-.*instruct", _INSTRUCTED),
        ("e5-(?:small|base|large)", ModelTraits(query_prompt="query: ", document_prompt="passage: ")),
        ("bge-m3", ModelTraits()),
        ("bge-[a-z]+-zh", ModelTraits(query_prompt="为这个句子生成表示以用于检索相关文章：")),  # noqa: RUF001 # the colon of the card
        ("bge-[a-z]+-en", ModelTraits(query_prompt=_SEARCHING)),
        ("gte-qwen", _INSTRUCTED),
        ("gte-", ModelTraits()),
        ("mxbai-embed", ModelTraits(query_prompt=_SEARCHING)),
        ("all-minilm", ModelTraits()),
    )
)
"""Families by a part of their names: small letters, and dashes for all but letters and digits. The first match holds."""

_BY_ARCHITECTURE = {
    "qwen3": _QWEN3_EMBEDDING,
    "gemma-embedding": _EMBEDDING_GEMMA,
    "gemma-embedding2": _EMBEDDING_GEMMA,
    "nomic-bert": _nomic(0),
    "nomic-bert-moe": _nomic(256),
    "jina-bert-v2": ModelTraits(),
    "jina-bert-v3": _JINA_V3,
}
"""Families by the architecture of files whose names say nothing."""


def known_traits(model: ModelInfo) -> ModelTraits | None:
    """Return the traits of a model by the metadata of its file.

    The name goes first, then what the file was made from, then the architecture: several families share one architecture, and
    one family has several.

    Args:
        model: The model.

    Returns:
        Its traits, which may have no prompts; None if the model is of no known family.
    """
    for name in (model.name, *model.origins):
        plain = re.sub("[^a-z0-9]+", "-", name.lower())
        for pattern, traits in _BY_NAME:
            if pattern.search(plain):
                return traits
    if model.architecture == "qwen3" and model.pooling != "last":
        return None  # not made as Qwen3-Embedding was
    return _BY_ARCHITECTURE.get(model.architecture)


def traits_of(model: ModelInfo, told: ModelTraits | None = None, own: OwnTraits = OwnTraits()) -> ModelTraits:  # noqa: B008 # immutable
    """Return the traits that a model is used with.

    Args:
        model: The model.
        told: The traits that the manifest tells; None takes those of its family, or none.
        own: The traits that the user has set, which go first.
    """
    return own.over(told or known_traits(model) or ModelTraits(prompts_unknown=True))
