"""The description of a model that requests may name: where its file comes from, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from runed.domain.model import ModelTraits, OwnTraits
from runed.own_models import RemoteModel

_PERMISSIVE = frozenset({"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "Unlicense"})
"""Licences that permit all usual uses, as SPDX identifiers."""


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
        own: The traits that the user has set. They go before all others.
        source: Where its file comes from if the user has named a file of the model hub, as in "hf:owner/repository/file.gguf".
        sha256: The SHA-256 of its file, in hexadecimal, where it is known before the file is there; otherwise "".
        licence_url: The text of the licence, or "".
        dimensions: The number of values of a vector; 0 if only its file tells.
        engine_build: The first release of llama.cpp that runs it; 0 if any does.
        remote: The engine on another machine that has it; None for a model with a file.
        hash_sources: In how many independent places its hash was found, if that is one; 0 otherwise.
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
    own: OwnTraits = OwnTraits()  # noqa: RUF009 # immutable
    source: str = ""
    sha256: str = ""
    licence_url: str = ""
    dimensions: int = 0
    engine_build: int = 0
    hash_sources: int = 0
    remote: RemoteModel | None = None

    @property
    def name(self) -> str:
        """The full name, such as "qwen3-embedding-0.6b.q6_K"."""
        return f"{self.family}.{self.variant}" if self.variant else self.family

    @property
    def is_listed(self) -> bool:
        """Whether it is a model of the manifest, and not one that the user brings."""
        return self.path is None and not self.source and self.remote is None

    @property
    def notice(self) -> str:
        """What a user must know of the licence before the first download; "" for one that permits all usual uses."""
        if not self.licence or self.licence in _PERMISSIVE:
            return ""
        return f"{self.licence}, {self.licence_url}" if self.licence_url else self.licence
