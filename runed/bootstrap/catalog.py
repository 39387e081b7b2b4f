"""The catalog: all models that requests may name, from the manifest, `config.json` and `RUNED_MODEL`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from runed.bootstrap.hub import hub_file
from runed.bootstrap.manifest import Artefact, Manifest, ModelChoice
from runed.domain.model import OwnTraits
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames, check_default, name_of_file, split_name
from runed.errors import SettingsError, UnknownModelError
from runed.own_models import OwnModel, RemoteModel
from runed.settings import Settings

REMOTE = "remote"
"""The name of the model of `RUNED_BACKEND`."""


def build_catalog(settings: Settings, manifest: Manifest, ranks: Callable[[ModelSpec], bool] = lambda _: False) -> ModelNames:
    """Return the models that requests may name.

    A model of the user's own takes the place of one of the manifest with the same name. An entry of `config.json` without a
    model of its own changes that of the manifest that has its name, or all variants of the family that has it.

    Args:
        settings: The settings.
        manifest: The manifest.
        ranks: Returns whether the file of a model of the user's own is that of a reranker. It is asked for those of which the
            settings do not tell the kind.

    Raises:
        SettingsError: A name of the settings cannot be used, or stands for two models or for none.
        ManifestError: The manifest has no model that is called like the default one.
    """
    own = own_specs(settings, ranks)
    names = {spec.name.lower() for spec in own}
    others = [spec for spec in manifest.specs() if spec.name.lower() not in names]
    for name, model in settings.models.items():
        if not model.is_model:
            changed = [spec for spec in others if name.lower() in {spec.name.lower(), spec.family.lower()}]
            if not changed:
                raise SettingsError(
                    f"models.{name} in config.json has no path, and {manifest.source} has no model of this name; "
                    "add a path or a url, or remove the entry"
                )
            _check_kind(name, model, changed[0])
            # Aliases stand for one model: the first variant, which is the family's default one.
            others = [_changed(spec, model, aliases=spec is changed[0]) if spec in changed else spec for spec in others]
    default = (
        own[0].name
        if settings.backend or settings.model
        else settings.default_model or manifest.default(settings.model_variant)
    )
    catalog = ModelNames([*own, *others], default=default, aliases=settings.aliases)
    for spec in own:
        _check_fallback(spec, catalog)
    return catalog


def own_specs(settings: Settings, ranks: Callable[[ModelSpec], bool] = lambda _: False) -> list[ModelSpec]:
    """Return the models that the settings bring: that of `RUNED_BACKEND` or `RUNED_MODEL` first, then those of `config.json`.

    Args:
        settings: The settings.
        ranks: As for `build_catalog`. Without it, a model of which the settings do not tell the kind embeds.
    """
    specs = [_spec(name, model, ranks) for name, model in settings.models.items() if model.is_model]
    if settings.backend:
        remote = RemoteModel(url=settings.backend, key_file=settings.backend_key_file)
        specs = [ModelSpec(family=REMOTE, remote=remote), *(spec for spec in specs if spec.name.lower() != REMOTE)]
    elif settings.model is not None:
        family, variant = split_name(name_of_file(settings.model))
        first = _as_told(ModelSpec(family=family, variant=variant, path=settings.model), ranks)
        specs = [first, *(spec for spec in specs if spec.name.lower() != first.name)]
    return specs


def own_default(settings: Settings) -> ModelSpec | None:
    """Return the default model if the user brings it, so that it can be known without a manifest. Otherwise return None.

    Raises:
        SettingsError: It gives no vectors.
    """
    own = own_specs(settings)
    if settings.backend or settings.model is not None:
        return own[0]
    wanted = settings.default_model.lower()
    return next((check_default(spec) for spec in own if wanted in {spec.name.lower(), *map(str.lower, spec.aliases)}), None)


def choice_of(spec: ModelSpec, manifest: Manifest) -> ModelChoice:
    """Return what to download for a model that is no file of this machine.

    Raises:
        ManifestError: The manifest does not have the model any more, or its entry is invalid.
    """
    if not spec.source:
        return manifest.model(spec.name)
    url, _ = hub_file(spec.source, f"the source of {spec.name}")
    return ModelChoice(spec.name, spec.name, Artefact(url, spec.sha256, None), None)


def _spec(name: str, model: OwnModel, ranks: Callable[[ModelSpec], bool]) -> ModelSpec:
    family, variant = split_name(name)
    entry = model.entry
    spec = ModelSpec(
        family=family,
        variant=variant,
        path=model.path,
        source=entry.source or "",
        sha256=entry.sha256 or "",
        remote=model.remote,
        context=entry.max_tokens or 0,
        dimensions=entry.dimensions or 0,
    )
    if spec.remote is None:
        spec = replace(spec, kind=ModelKind(entry.kind)) if entry.kind else _as_told(spec, ranks)
    return _changed(spec, model, aliases=True)


def _as_told(spec: ModelSpec, ranks: Callable[[ModelSpec], bool]) -> ModelSpec:
    """Return a model with the kind that its file tells."""
    return replace(spec, kind=ModelKind.RERANK) if ranks(spec) else spec


def _check_fallback(spec: ModelSpec, names: ModelNames) -> None:
    """Refuse a fallback that can never compute: it must be a model that embeds on this machine."""
    if spec.remote is None or not spec.remote.fallback:
        return
    where = f"fallback of models.{spec.name} in config.json"
    try:
        found = names.find(spec.remote.fallback)
    except UnknownModelError as error:
        raise SettingsError(f"{where}: {error.message}") from None
    if found.remote is not None:
        raise SettingsError(f"{where}: {found.name} is on another machine, too; name a model of this one, or remove it")
    if found.kind is not ModelKind.EMBEDDING:
        raise SettingsError(f"{where}: {found.name} is a reranker and gives no vectors; name a model that embeds, or remove it")


def _check_kind(name: str, model: OwnModel, changed: ModelSpec) -> None:
    """Refuse an entry that contradicts the kind of the model of the manifest that it changes."""
    entry = model.entry
    if entry.kind not in {None, changed.kind.value}:
        raise SettingsError(
            f'models.{name} in config.json has the kind "{entry.kind}", but {changed.name} is of the kind '
            f'"{changed.kind.value}"; remove the kind from the entry'
        )
    if entry.pooling and changed.kind is ModelKind.RERANK:
        raise SettingsError(
            f"models.{name} in config.json has a pooling, but {changed.name} is a reranker, which has its own; remove the "
            "pooling from the entry"
        )


def _changed(spec: ModelSpec, model: OwnModel, *, aliases: bool) -> ModelSpec:
    entry = model.entry
    return replace(
        spec,
        aliases=tuple(entry.aliases) if aliases else (),
        pooling=entry.pooling or "",
        keep_alive=model.keep_alive,
        own=OwnTraits(
            query_prompt=entry.query_prompt,
            document_prompt=entry.document_prompt,
            default_instruction=entry.default_instruction,
            min_dimensions=entry.min_dimensions,
        ),
    )
