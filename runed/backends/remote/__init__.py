"""An engine on another machine as a backend: one that speaks the API of OpenAI, or that of Text Embeddings Inference."""

from runed.backends.remote.backend import RemoteBackend, meet
from runed.backends.remote.fallback import Fallback

__all__ = ["Fallback", "RemoteBackend", "meet"]
