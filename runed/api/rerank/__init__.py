"""The rerank API of Jina, Cohere and llama-server on top of the host."""

PATHS = frozenset({"/v1/rerank", "/v1/reranking", "/v2/rerank"})
"""The paths of the API: llama-server has both of version 1, and Cohere has version 2."""
