"""The engine process, `llama-server`, as an Embedder."""

from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.gguf import GGUFMetadata, check_model, ranks, read_gguf
from runed.backends.llama.timings import Timings

__all__ = ["GGUFMetadata", "LlamaBackend", "Timings", "check_model", "ranks", "read_gguf"]
