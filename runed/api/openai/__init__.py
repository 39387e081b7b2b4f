"""The embeddings part of OpenAI's API on top of the host."""

PREFIX = "/v1/"
"""The beginning of every path of the API, also of unknown paths."""
