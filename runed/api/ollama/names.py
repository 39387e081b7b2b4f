"""The names of models as Ollama writes them: a name, a colon and a tag, such as "qwen3-embedding:0.6b" or "bge-m3:latest"."""

from __future__ import annotations

from collections.abc import Iterator

from runed.api.host import Host
from runed.domain.model_status import ModelStatus

_LATEST = ":latest"

_LIBRARY = {"nomic-embed-text": "nomic-embed-text-v1.5", "embeddinggemma": "embeddinggemma-300m"}
"""Families by the names that Ollama's library has for the same models, where these are not the same by themselves."""


def tagged(model: ModelStatus) -> str:
    """Return the name of a model for Ollama's clients. The tag is the variant, or "latest" for the default one of a family."""
    variant = model.name[len(model.family) + 1 :]
    is_default = not variant or model.variants[:1] == (model.name,)
    return f"{model.family}{_LATEST}" if is_default else f"{model.family}:{variant}"


async def untagged(host: Host, name: str) -> str:
    """Return the name of a model for the host.

    Args:
        host: The daemon.
        name: The name that a client of Ollama uses. An unknown one is returned as it is.
    """
    if name.lower().endswith(_LATEST):
        name = name[: -len(_LATEST)]
    if ":" not in name and name.lower() not in _LIBRARY:
        return name
    known = {known.lower() for model in await host.models() for known in (model.name, model.family, *model.aliases)}
    return next((candidate for candidate in _candidates(name) if candidate.lower() in known), name)


def _candidates(name: str) -> Iterator[str]:
    base, colon, tag = name.partition(":")
    if not colon:
        yield base  # a model of the user's own may have it
        yield _LIBRARY[base.lower()]
        return
    yield f"{base}.{tag}"  # "bge-m3:f16"
    yield f"{base}-{tag}"  # "qwen3-embedding:0.6b"
    size, dash, variant = tag.partition("-")
    if dash:
        yield f"{base}-{size}.{variant}"  # "qwen3-embedding:0.6b-q8_0"
