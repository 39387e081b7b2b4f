"""The engine process, `llama-server`, as an Embedder."""

from runed.backend.gguf import GGUFMetadata, check_model, read_gguf
from runed.backend.launch import Timings
from runed.backend.llama import LlamaBackend

__all__ = ["GGUFMetadata", "LlamaBackend", "Timings", "check_model", "read_gguf"]
