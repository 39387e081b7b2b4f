"""The engine process, `llama-server`, as an Embedder."""

from runed.backends.llama.backend import LlamaBackend

__all__ = ["LlamaBackend"]
