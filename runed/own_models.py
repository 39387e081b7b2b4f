"""The models of `config.json`: the user's own, and changes of those of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from runed.errors import SettingsError
from runed.urls import beneath

_OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names of models that programs for OpenAI have written into them."""

_SHOWN = 60
"""The most characters of a name that an error repeats."""


def own_aliases(value: Mapping[str, str] | None = None, _origin: str = "") -> Mapping[str, str]:
    """Return the aliases of models: those of the file, and the names of OpenAI's models for the default model."""
    return {**dict.fromkeys(_OPENAI_NAMES, ""), **(value or {})}


Kind = Literal["embedding", "rerank"]
"""What a model is for, as an entry names it."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of `models` as it stands in the file.

    A kind or a pooling that is missing is that of the model's file, and any other trait is that of the model's family.
    """

    path: str | None = None
    source: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    kind: Kind | None = None
    pooling: Literal["mean", "cls", "last"] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    default_instruction: str | None = None
    min_dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None
    keep_alive: str | None = None
    aliases: list[str] = []


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A checked entry.

    Attributes:
        entry: The entry.
        path: The file of the model; None if it is not one of this machine.
        keep_alive: Seconds without a text after which its engine is stopped; 0 for never, None for the common time.
    """

    entry: Entry
    path: Path | None
    keep_alive: float | None

    @property
    def is_model(self) -> bool:
        """Whether the entry brings a model, and does not only change one of the manifest."""
        return self.path is not None or self.entry.source is not None


def own_models(
    entries: Mapping[str, Entry],
    file: Path,
    *,
    read_path: Callable[[str, str], Path],
    read_duration: Callable[[str, str], float],
) -> dict[str, OwnModel]:
    """Check the entries of `models`.

    Args:
        entries: The entries by name.
        file: The file where they stand. Relative paths begin at its folder.
        read_path: Turns the text of a path, or of a `file:` URL, into a path. Its second argument is the origin of the text.
        read_duration: Turns the text of a duration into seconds.

    Raises:
        SettingsError: One cannot be used.
    """
    models = {}
    for name, entry in entries.items():
        where = f"models.{name[:_SHOWN]} in {file}"
        if entry.path is not None and entry.source is not None:
            raise SettingsError(f"{where} has both path and source; a model has one of them, so remove the other")
        if entry.source is not None and entry.sha256 is None:
            raise SettingsError(f"{where} has a source without its sha256; let `runed pull {entry.source}` write the entry")
        if entry.kind == "rerank" and entry.pooling is not None:
            raise SettingsError(f'{where} has the kind "rerank" and a pooling; a reranker has its own, so remove the pooling')
        models[name] = OwnModel(
            entry,
            None if entry.path is None else read_path(beneath(file.parent, entry.path), f"path of {where}"),
            None if entry.keep_alive is None else read_duration(entry.keep_alive, f"keep_alive of {where}"),
        )
    return models
