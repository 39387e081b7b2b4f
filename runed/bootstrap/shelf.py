"""The models of a home: which files are there, and the changes that a user makes of them and of their entries."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runed.bootstrap.audit import Audit, VerifiedFiles
from runed.bootstrap.hub import hub_file
from runed.bootstrap.partial_files import discard_partial, fresh_path, partial_size
from runed.config_file import edit_config, with_value, without_value
from runed.domain.model_spec import ModelSpec
from runed.domain.names import ModelNames, check_default, name_of_file, split_name
from runed.errors import BootstrapError, SettingsError, quoted
from runed.locking import LockFile
from runed.model_names import check_name
from runed.own_models import Entry
from runed.paths import Paths
from runed.settings import Settings, configuration


@dataclass(frozen=True, slots=True)
class Held:
    """What the home holds of a model.

    Attributes:
        path: The place of its file, whether it is there or not.
        size: The bytes of its file; None if it is not there.
        partial: The bytes of a download that is not complete.
    """

    path: Path
    size: int | None
    partial: int


def held(paths: Paths, spec: ModelSpec) -> Held:
    """Return what there is of a model."""
    path = spec.path or paths.model(spec.name)
    return Held(path, path.stat().st_size if path.is_file() else None, 0 if spec.path else partial_size(path))


def recorded_sha256(settings: Settings, paths: Paths, spec: ModelSpec) -> str:
    """Return the SHA-256 with which a model was installed; "" if it is not recorded."""
    record = Audit(paths.installed, settings).installed.models.get(spec.name)
    return record.sha256 if record else spec.sha256


def served_sha256(settings: Settings, paths: Paths, spec: ModelSpec) -> str:
    """Return the SHA-256 that a model had when it was last served or installed; "" if it never was."""
    if spec.path is None:
        return recorded_sha256(settings, paths, spec)
    return VerifiedFiles(paths, announce=lambda _: None).recall(spec.path)


def hub_spec(catalog: ModelNames, source: str, name: str = "") -> ModelSpec:
    """Describe a file of the hub that the user names, before its first download.

    Args:
        catalog: The models that there are.
        source: The file, as in "hf:owner/repository/file.gguf@revision".
        name: The name of the model; "" takes that of the file.

    Raises:
        SettingsError: The source or the name cannot be used, or another model has the name.
    """
    _, file = hub_file(source, "runed pull")
    name = check_name(name or name_of_file(Path(file)), "--name")
    known = catalog.specs.get(name)
    if known and known.source == source:
        return known
    _refuse_taken(catalog, name)
    family, variant = split_name(name)
    return ModelSpec(family=family, variant=variant, source=source)


def add_entry(settings: Settings, paths: Paths, catalog: ModelNames, name: str, entry: Entry) -> None:
    """Write the entry of a model into the configuration, and leave all else there as it is.

    Args:
        settings: The settings.
        paths: The paths of the home.
        catalog: The models that there are.
        name: The name of the model.
        entry: The entry.

    Raises:
        SettingsError: The name or an alias cannot be used or is taken, or the configuration cannot be changed.
    """
    for each in (name, *entry.aliases):
        check_name(each, f"the model {quoted(name)}")
        if each != name or each not in catalog.specs or not catalog.specs[each].source:
            _refuse_taken(catalog, each)
    if len({each.lower() for each in (name, *entry.aliases)}) <= len(entry.aliases):
        raise SettingsError(f"the model {quoted(name)} has an alias twice; leave one out")
    content = msgspec.to_builtins(entry)
    _edit(settings, paths, lambda text: with_value(text, ("models", name), content))


def remove(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec) -> int:
    """Remove a model: its entry in the configuration if it is the user's own, and the file if runed has downloaded it.

    Returns:
        The bytes that were freed; 0 if only an entry was removed.

    Raises:
        SettingsError: The settings name it in another place, or it is not there.
        BootstrapError: Another process is installing something.
    """
    if spec.path is not None and spec.path == settings.model:
        raise SettingsError(f"{spec.name} is the model of RUNED_MODEL (or model in config.json); unset that instead")
    entries = (name for name, model in settings.models.items() if model.is_model and name.lower() == spec.name.lower())
    own = next(entries, None)
    there = held(paths, spec)
    if own is not None:
        _refuse_used(settings, catalog, spec)
    elif there.size is None and not there.partial:
        raise SettingsError(f"{spec.name} is not installed, so there is nothing to remove")
    freed = 0 if spec.path or spec.remote else remove_file(settings, paths, spec)
    if own is not None:
        _edit(settings, paths, lambda text: without_value(text, ("models", own)))
    return freed


def use(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec) -> tuple[list[str], str]:
    """Make a model the default one, in the configuration. The file that was the default model gets an entry of its own.

    Returns:
        The keys that named another default model, and were removed; and the name of the entry of the file, or "".

    Raises:
        SettingsError: It gives no vectors, or the configuration cannot be changed.
    """
    check_default(spec)
    removed: list[str] = []
    kept = _unlisted(settings, catalog)

    def change(text: str) -> str:
        removed.clear()
        for key in ("model", "model_variant"):
            if (shorter := without_value(text, (key,))) != text:
                removed.append(key)
                text = shorter
        if kept:
            text = with_value(text, ("models", kept), {"path": os.fspath(settings.model or "")})
        return with_value(text, ("default_model",), spec.name)

    _edit(settings, paths, change)
    return removed, kept


def _unlisted(settings: Settings, catalog: ModelNames) -> str:
    """Return the name of the model that the configuration names by its file alone, which would be forgotten; "" for none."""
    if settings.model is None or settings.written.get("model", ("", ""))[1] != "config.json":
        return ""
    own = {model.path for model in settings.models.values()}
    spec = next((one for one in catalog.specs.values() if one.path == settings.model), None)
    return "" if spec is None or spec.path in own else spec.name


def _edit(settings: Settings, paths: Paths, change: Callable[[str], str]) -> None:
    edit_config(configuration(settings.home), paths.config_lock, change)


def remove_file(settings: Settings, paths: Paths, spec: ModelSpec) -> int:
    """Remove the file of a model, the rest of an interrupted download, and the record. Return the bytes."""
    with LockFile(paths.install_lock) as lock:
        if not lock.try_acquire():
            raise BootstrapError(f"process {lock.holder()} is installing engine or model; try again when it has ended")
        there = held(paths, spec)
        there.path.unlink(missing_ok=True)
        discard_partial(there.path)
        fresh_path(there.path).unlink(missing_ok=True)
        audit = Audit(paths.installed, settings)
        if audit.installed.models.pop(spec.name, None):
            audit.save()
        return (there.size or 0) + there.partial


def _refuse_taken(catalog: ModelNames, name: str) -> None:
    if taken := catalog.named(name):
        raise SettingsError(
            f"there is already a model called {quoted(name)} ({taken.name}); choose another name, or remove it by "
            f"`runed rm {name}`"
        )


def _refuse_used(settings: Settings, catalog: ModelNames, spec: ModelSpec) -> None:
    """Refuse to remove an entry that others refer to: without it, none of the settings could be used."""
    if settings.default_model and catalog.named(settings.default_model) is spec:
        raise SettingsError(f"{spec.name} is the default model; choose another one first: `runed use NAME`")
    if alias := next((alias for alias, name in settings.aliases.items() if catalog.named(name) is spec), None):
        raise SettingsError(f"the alias {quoted(alias)} in config.json stands for {spec.name}; remove it first")
