"""The API of Hugging Face's Text Embeddings Inference (TEI) on top of the host."""

PATHS = frozenset({"/", "/embed", "/rerank", "/tokenize", "/info", "/health"})
"""The paths of the API, which have no common beginning."""
