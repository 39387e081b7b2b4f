"""The models of `config.json`: the user's own, those of engines on other machines, and changes of those of the manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from runed.errors import SettingsError
from runed.model_names import check_name, check_names
from runed.setting_values import as_written
from runed.urls import beneath, is_web_url, printable_url

_OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names of models that programs for OpenAI have written into them."""


def own_aliases(value: Mapping[str, str] | None = None, origin: str = "") -> Mapping[str, str]:
    """Return the aliases of models: those of the file, and the names of OpenAI's models for the default model.

    Raises:
        SettingsError: One cannot be the name of a model, or differs from another one by upper and lower case alone.
    """
    check_names(value or {}, origin)
    return {**dict.fromkeys(_OPENAI_NAMES, ""), **(value or {})}


Kind = Literal["embedding", "rerank"]
"""What a model is for, as an entry names it."""


Api = Literal["openai", "tei"]
"""The API of an engine on another machine: that of OpenAI, or that of Text Embeddings Inference."""

_OF_REMOTES = (
    *("model", "api", "api_key_file", "api_key_env", "ca_file", "dimensions", "max_tokens", "batch", "concurrency"),
    *("timeout", "fallback"),
)
"""The keys of an entry that only a model with a url has."""

_OF_FILES = ("path", "source", "sha256", "pooling")
"""The keys of an entry that a model with a url has not."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


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
    min_dimensions: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    keep_alive: str | None = None
    aliases: list[str] = []
    url: str | None = None
    model: str | None = None
    api: Api | None = None
    api_key_file: str | None = None
    api_key_env: str | None = None
    ca_file: str | None = None
    dimensions: _Positive | None = None
    max_tokens: _Positive | None = None
    batch: Annotated[int, msgspec.Meta(ge=1, le=2048)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    timeout: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model of an engine on another machine.

    Attributes:
        url: Where the engine answers, without a slash at the end.
        model: The name of the model there; "" for the only one.
        api: The API; None finds it out.
        key_file: The file of the key, or None.
        key_variable: The environment variable of the key, or "".
        ca_file: Certificates of authorities to trust instead of the usual ones, as PEM; None for the usual ones.
        dimensions: The number of values that each vector must have; 0 for as many as come.
        max_tokens: The most tokens of a text; 0 for what the engine tells.
        batch: The most texts of one request.
        concurrency: The most requests at once, of the whole daemon.
        timeout: Seconds for all tries of one request.
        fallback: The model of this machine that computes while the engine is away; "" for none.
    """

    url: str
    model: str = ""
    api: Api | None = None
    key_file: Path | None = None
    key_variable: str = ""
    ca_file: Path | None = None
    dimensions: int = 0
    max_tokens: int = 0
    batch: int = 32
    concurrency: int = 4
    timeout: float = 60.0
    fallback: str = ""

    @property
    def key_place(self) -> str:
        """Where the key comes from, for people; "" if there is none."""
        return f"the variable {self.key_variable}" if self.key_variable else str(self.key_file or "")


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A checked entry.

    Attributes:
        entry: The entry.
        path: The file of the model; None if it is not one of this machine.
        keep_alive: Seconds without a text after which its engine is stopped; 0 for never, None for the common time.
        remote: The engine on another machine that has it, or None.
    """

    entry: Entry
    path: Path | None
    keep_alive: float | None
    remote: RemoteModel | None = None

    @property
    def is_model(self) -> bool:
        """Whether the entry brings a model, and does not only change one of the manifest."""
        return self.path is not None or self.entry.source is not None or self.remote is not None


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
    check_names(entries, f"models in {file}")
    models = {}
    for name, entry in entries.items():
        where = f"models.{name} in {file}"
        for alias in entry.aliases:
            check_name(alias, f"aliases of {where}")
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
            _remote(name, entry, file, where, read_path=read_path, read_duration=read_duration),
        )
    return models


def settle_default(values: dict[str, Any], told: Callable[[str], str | None]) -> None:
    """Keep one answer to the question which model is the default. The environment goes first, then `backend`, then `model`.

    Args:
        values: The values of the settings by their fields, which are changed.
        told: Returns the value of a variable of the environment, or None.
    """
    if "backend" in values:
        if told("RUNED_BACKEND") or not any(map(told, ("RUNED_MODEL", "RUNED_MODEL_VARIANT", "RUNED_DEFAULT_MODEL"))):
            values.pop("model", None)
            values.pop("default_model", None)
        else:
            del values["backend"]
    if "default_model" not in values:
        return
    default = told("RUNED_DEFAULT_MODEL")
    by_file = "model" in values and (told("RUNED_MODEL") or not default)
    if by_file or (told("RUNED_MODEL_VARIANT") and not default):
        del values["default_model"]
    else:
        values.pop("model", None)


def remote_url(url: str, origin: str) -> str:
    """Return the URL of an engine on another machine, without a slash at the end.

    Args:
        url: The URL.
        origin: The place where it stands, for the error.

    Raises:
        SettingsError: It is no such URL, or holds a password.
    """
    if not is_web_url(url):
        raise SettingsError(
            f"{as_written(printable_url(url), origin)}: accepted is an https or http URL, such as https://gpu.example/v1"
        )
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingsError(
            f"{as_written(printable_url(url), origin)} has a user, a password, a query or a fragment; remove that, and name "
            "the file of a key instead (api_key_file)"
        )
    return url.rstrip("/")


def _remote(
    name: str,
    entry: Entry,
    file: Path,
    where: str,
    *,
    read_path: Callable[[str, str], Path],
    read_duration: Callable[[str, str], float],
) -> RemoteModel | None:
    """Check the keys of an entry about an engine on another machine."""
    if entry.url is None:
        if alone := [key for key in _OF_REMOTES if getattr(entry, key) is not None]:
            raise SettingsError(f"{where} has {alone[0]} without a url; add the url of the engine, or remove {alone[0]}")
        return None
    if both := [key for key in _OF_FILES if getattr(entry, key) is not None]:
        raise SettingsError(f"{where} has both url and {both[0]}; a model has one place, so remove one of them")
    if entry.kind == "rerank":
        raise SettingsError(
            f'{where} has a url and the kind "rerank"; engines on other machines embed only, so remove the kind'
        )
    if entry.api_key_file is not None and entry.api_key_env is not None:
        raise SettingsError(f"{where} has both api_key_file and api_key_env; remove one of them")
    if entry.api_key_env is not None and not _VARIABLE.fullmatch(entry.api_key_env):
        raise SettingsError(f"api_key_env of {where} is no name of a variable; put the name there, never the key itself")
    if entry.fallback is not None and entry.fallback.lower() == name.lower():
        raise SettingsError(f"fallback of {where} is the model itself; name a model of this machine, or remove it")

    def path(key: str) -> Path | None:
        text = getattr(entry, key)
        return None if text is None else read_path(beneath(file.parent, text), f"{key} of {where}")

    usual = RemoteModel(url=remote_url(entry.url, f"url of {where}"))
    return replace(
        usual,
        model=entry.model or "",
        api=entry.api,
        key_file=path("api_key_file"),
        key_variable=entry.api_key_env or "",
        ca_file=path("ca_file"),
        dimensions=entry.dimensions or 0,
        max_tokens=entry.max_tokens or 0,
        batch=entry.batch or usual.batch,
        concurrency=entry.concurrency or usual.concurrency,
        timeout=_timeout(entry.timeout, f"timeout of {where}", read_duration) if entry.timeout else usual.timeout,
        fallback=entry.fallback or "",
    )


def _timeout(value: str, origin: str, read_duration: Callable[[str, str], float]) -> float:
    if seconds := read_duration(value, origin):
        return seconds
    raise SettingsError(f"{as_written(value, origin)}: accepted is a duration of more than 0, since an engine may never answer")
