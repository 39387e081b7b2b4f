"""The description of a model that requests may name: where its file comes from, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from runed.domain.model import ModelTraits


class ModelKind(Enum):
    """The purpose of a model; documented in runed.proto."""

    EMBEDDING = "embedding"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that requests may name. It may not be installed yet.

    Attributes:
        family: The name without the variant, such as "qwen3-embedding-0.6b".
        variant: The variant, such as "q6_K"; "" for a model that has none, such as one that the user brings.
        aliases: Further names.
        path: The file that the user brings; None for a model of the manifest, whose entry is called `name`.
        kind: The purpose of the model.
        traits: Its prompts and dimensions; None derives them from the manifest or from its file.
        pooling: "last", "mean" or "cls" instead of the pooling that its file tells; "" keeps that.
        keep_alive: Seconds without a text after which its engine is stopped; 0 never stops it, None means `RUNED_IDLE_TIMEOUT`.
        licence: Its licence, as an SPDX identifier or as words; "" if it is not known.
        context: The most tokens that it was trained to read; 0 if only its file tells.
        size: The bytes of its file; 0 if they are not known.
    """

    family: str
    variant: str = ""
    aliases: tuple[str, ...] = ()
    path: Path | None = None
    kind: ModelKind = ModelKind.EMBEDDING
    traits: ModelTraits | None = None
    pooling: str = ""
    keep_alive: float | None = None
    licence: str = ""
    context: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """The full name, such as "qwen3-embedding-0.6b.q6_K"."""
        return f"{self.family}.{self.variant}" if self.variant else self.family
