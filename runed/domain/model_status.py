"""A model that requests may name, as the faces tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runed.domain.model_spec import ModelKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model that requests may name, and its present state; fields and units as in `Model` of runed.proto.

    What is not known before a model was loaded or installed is 0 or empty.
    """

    name: str
    family: str
    variants: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    kind: ModelKind = ModelKind.EMBEDDING
    licence: str = ""
    size_bytes: int = 0
    installed: bool = False
    loaded: bool = False
    memory_bytes: int = 0
    last_used_at: int = 0
    keep_alive_seconds: float = 0.0
    vector_dim: int = 0
    min_dimensions: int = 0
    max_text_length: int = 0
    context_length: int = 0
    pooling: str = ""
    query_prompt: str = ""
    document_prompt: str = ""
    default_instruction: str = ""
    fingerprint: str = ""
    model_identity: str = ""
    architecture: str = ""
    """The GGUF architecture, such as "qwen3"."""
    sha256: str = ""
    """The SHA-256 of its file, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoom:
    """The bounds of the engines of all models; fields and units as in `ListModelsResponse` of runed.proto."""

    memory_limit: int = 0
    memory_bytes: int = 0
    max_loaded_models: int = 0


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of some texts.

    Attributes:
        ids: The numbers of the tokens of each text.
        pieces: The text of each token that occurs, by its number.
        special: The numbers of the special tokens of the model.
    """

    ids: Sequence[Sequence[int]]
    pieces: Mapping[int, str]
    special: frozenset[int]
