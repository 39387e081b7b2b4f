"""The embeddings part of Ollama's API on top of the host."""

PREFIX = "/api/"
"""The beginning of every path of the API, also of unknown paths."""
