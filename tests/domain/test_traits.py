"""The traits of families of models, which are known by names and architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runed.domain.model import ModelInfo, ModelTraits, OwnTraits, fingerprint, prompt_for
from runed.domain.requests import EmbedOptions, Role
from runed.domain.traits import known_traits, traits_of

NAMELESS = ModelInfo("sha256:12", "model", "bert", 64, 511, "mean", "Q6_K", "ab" * 32)

SEARCHING = "Represent this sentence for searching relevant passages: "
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.mark.parametrize(
    ("name", "architecture", "query", "document", "least"),
    [
        ("Qwen3 Embedding 4B", "qwen3", f"Instruct: {WEB_SEARCH}\nQuery:", "", 32),
        ("Embeddinggemma 300M", "gemma-embedding", "task: search result | query: ", "title: none | text: ", 128),
        ("EmbeddingGemma 2", "gemma-embedding2", "task: search result | query: ", "title: none | text: ", 128),
        ("nomic-embed-text-v1.5", "nomic-bert", "search_query: ", "search_document: ", 64),
        ("nomic-embed-text-v1", "nomic-bert", "search_query: ", "search_document: ", 0),
        ("Nomic Embed Text v2 Moe", "nomic-bert-moe", "search_query: ", "search_document: ", 256),
        ("Jina Embeddings v5 Text Small Retrieval", "qwen3", "Query: ", "Document: ", 32),
        ("jina-embeddings-v4-text-retrieval", "qwen2vl", "Query: ", "Passage: ", 128),
        ("jina-embeddings-v2-base-en", "jina-bert-v2", "", "", 0),
        ("Snowflake Arctic Embed L v2.0", "bert", "query: ", "", 256),
        ("snowflake-arctic-embed-m-v1.5", "bert", SEARCHING, "", 256),
        ("Snowflake Arctic Embed M Long", "nomic-bert", SEARCHING, "", 0),
        ("multilingual-e5-base", "bert", "query: ", "passage: ", 0),
        ("E5 Small v2", "bert", "query: ", "passage: ", 0),
        ("Multilingual E5 Large Instruct", "bert", f"Instruct: {WEB_SEARCH}\nQuery: ", "", 0),
        ("e5-mistral-7b-instruct", "llama", f"Instruct: {WEB_SEARCH}\nQuery: ", "", 0),
        ("bge-small-en-v1.5", "bert", SEARCHING, "", 0),
        ("Bge Base Zh v1.5", "bert", "为这个句子生成表示以用于检索相关文章：", "", 0),  # noqa: RUF001 # the colon of the card
        ("bge-m3", "bert", "", "", 0),
        ("gte-Qwen2-1.5B-instruct", "qwen2", f"Instruct: {WEB_SEARCH}\nQuery: ", "", 0),
        ("gte-base", "bert", "", "", 0),
        ("mxbai-embed-large-v1", "bert", SEARCHING, "", 0),
        ("all-MiniLM-L6-v2", "bert", "", "", 0),
        # By the architecture alone.
        (".", "qwen3", f"Instruct: {WEB_SEARCH}\nQuery:", "", 32),
        ("model", "gemma-embedding2", "task: search result | query: ", "title: none | text: ", 128),
        ("model", "nomic-bert", "search_query: ", "search_document: ", 0),
    ],
)
def test_families_are_known(name: str, architecture: str, query: str, document: str, least: int) -> None:
    pooling = "last" if architecture in {"qwen3", "llama", "qwen2"} else "mean"
    traits = traits_of(replace(NAMELESS, name=name, architecture=architecture, pooling=pooling))
    assert prompt_for(EmbedOptions(role=Role.QUERY), traits) == query
    assert prompt_for(EmbedOptions(role=Role.DOCUMENT), traits) == document
    assert traits.min_dimensions == least


@pytest.mark.parametrize(
    ("name", "architecture", "pooling"),
    [
        ("model", "bert", "mean"),
        ("Qwen3 0.6B", "qwen3", "mean"),
        ("the5-base", "bert", "mean"),
        ("parcel-gte", "bert", "mean"),
    ],
)
def test_other_models_are_not_known(name: str, architecture: str, pooling: str) -> None:
    model = replace(NAMELESS, name=name, architecture=architecture, pooling=pooling)
    assert known_traits(model) is None
    assert traits_of(model) == ModelTraits(prompts_unknown=True)
    assert traits_of(model, ModelTraits()) == ModelTraits()
    assert traits_of(model, own=OwnTraits(query_prompt="")) == ModelTraits()
    assert traits_of(model, own=OwnTraits(min_dimensions=32)) == ModelTraits(prompts_unknown=True, min_dimensions=32)


def test_a_known_family_without_prompts_is_not_an_unknown_one() -> None:
    assert known_traits(replace(NAMELESS, name="bge-m3")) == ModelTraits()


def test_the_name_goes_before_what_a_model_was_made_from() -> None:
    origins = ("https://example.com/intfloat/e5-base-unsupervised",)
    made_from_e5 = replace(NAMELESS, name="snowflake-arctic-embed-m", origins=origins)
    assert traits_of(made_from_e5).query_prompt == SEARCHING
    assert traits_of(replace(made_from_e5, name="ggml-model-f16")).query_prompt == "query: "


def test_own_traits_go_before_those_of_the_manifest_and_these_before_the_known_ones() -> None:
    e5 = replace(NAMELESS, name="e5-base")
    told = ModelTraits(query_prompt="q: ", min_dimensions=8)
    assert traits_of(e5, told) == told
    assert traits_of(e5, told, OwnTraits(document_prompt="d: ", min_dimensions=0)) == ModelTraits(
        query_prompt="q: ", document_prompt="d: "
    )
    assert traits_of(e5, None, OwnTraits(query_prompt="")) == ModelTraits(document_prompt="passage: ")


def test_the_fingerprint_of_qwen3_embedding_is_that_of_earlier_versions() -> None:
    qwen = ModelInfo("sha256:12", "qwen", "qwen3", 64, 511, "last", "Q6_K", "ab" * 32)
    assert fingerprint(qwen, traits_of(qwen), engine_version="1", dimensions=64) == "fp1-0a0d378c0d5ded0965f0abbb"
