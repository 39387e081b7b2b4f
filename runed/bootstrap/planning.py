"""Plans an installation: the engine and the model that the manifest names, except those that the user brings."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from runed.bootstrap import manifest
from runed.bootstrap.archive import is_executable
from runed.bootstrap.catalog import build_catalog, choice_of, own_default
from runed.bootstrap.context import InstallContext
from runed.bootstrap.manifest import EngineChoice, Manifest, ManifestSource, ModelChoice
from runed.bootstrap.policy import QUICK_LOOK, DownloadPolicy
from runed.domain.model_spec import ModelSpec
from runed.domain.names import ModelNames
from runed.errors import DownloadError, ManifestError, SettingsError
from runed.files import read_record, run_in_thread, write_atomically
from runed.log import get_logger
from runed.onnx_files import is_onnx
from runed.os_errors import forbids_programs, noexec
from runed.settings import ONNX, Settings

_log = get_logger(__name__)


class _KeptManifest(msgspec.Struct, frozen=True):
    """The last manifest from a URL. The URL may be out of reach at the next start."""

    source: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """The engine and the model to install.

    Attributes:
        engine: The engine; None for the user's own, or if none is needed.
        model: The model, or the file that the user brings.
        spec: The description of the model.
        accelerated: The engines for accelerators. Which of them is installed depends on the machine.
        variants: The names of all variants of the model, this one included; empty for the user's own.
        warning: A sentence for the user, or "".
        known: The names of all models of the manifest.
        fetched: The manifest that was fetched, or None.
        needs_engine: Whether a `llama-server` is needed.
    """

    engine: EngineChoice | None
    model: ModelChoice | Path
    spec: ModelSpec
    accelerated: tuple[EngineChoice, ...] = ()
    variants: tuple[str, ...] = ()
    warning: str = ""
    known: frozenset[str] = frozenset()
    fetched: _KeptManifest | None = None
    needs_engine: bool = True


def check_own_files(settings: Settings, spec: ModelSpec | None) -> None:
    """Check the user's own engine and model, if there are any.

    Raises:
        SettingsError: One of them cannot be used.
    """
    engine, model = settings.llama_server, spec.path if spec else None
    if engine and not is_executable(engine):
        problem = "is not an executable file" if engine.exists() else "does not exist"
        if engine.is_file() and forbids_programs(engine):
            problem = f"cannot be run: {noexec(engine)}"
        raise SettingsError(
            f"the engine {engine} {problem}; correct RUNED_LLAMA_SERVER (or llama_server in config.json), "
            "or unset it to have an engine installed"
        )
    if spec and model and not (model.is_file() and os.access(model, os.R_OK)):
        problem = "is not a file that can be read" if model.exists() else "does not exist"
        remedy = f"correct its path in config.json, or remove the entry by `runed rm {spec.name}`"
        if model == settings.model:
            remedy = "correct RUNED_MODEL (or model in config.json), or unset it to have a model installed"
        raise SettingsError(f"the model {model} {problem}; {remedy}")


async def make_plan(context: InstallContext, wanted: ModelSpec | None, is_in_place: Callable[[Plan], Awaitable[bool]]) -> Plan:
    """Make the plan. If everything is installed, wait only a few seconds for a manifest from a URL.

    Args:
        context: The arguments of the installation.
        wanted: The model to install; None means the default one.
        is_in_place: Returns whether everything in a plan is installed.

    Raises:
        SettingsError: `RUNED_MANIFEST` is neither a web URL nor a path, or a name of the settings cannot be used.
        UnsupportedPlatformError: There is no engine to download for this machine.
        DownloadError: The manifest cannot be fetched, and the plan of the last one is not installed.
        ManifestError: The manifest cannot be used, and the plan of the last one is not installed.
    """
    settings = context.settings
    own = wanted or own_default(settings)
    if own and own.path and (settings.llama_server or not _needs_engine(settings, own.path)):
        return Plan(None, own.path, own, needs_engine=_needs_engine(settings, own.path))
    source = manifest.manifest_source(settings)
    if not source.is_url:
        return _choose(settings, wanted, manifest.read_local_manifest(source))
    kept = _kept_manifest(context, source)
    last = _last_plan(settings, wanted, kept) if kept else None
    can_do_without = last is not None and await is_in_place(last)
    try:
        content = await _fetch(context, source, QUICK_LOOK if can_do_without else context.policy)
        plan = _choose(settings, wanted, manifest.parse_manifest(content, source))
    except (DownloadError, ManifestError) as error:
        if last is None or not can_do_without:
            raise
        _log.warning("manifest out of reach, using the installed files", problem=error.message)
        return replace(last, warning=f"the installed files are used, since the manifest could not be: {error.message}")
    return replace(plan, fetched=_KeptManifest(source.location, content))


async def find_catalog(context: InstallContext, ranks: Callable[[Path], bool]) -> ModelNames:
    """Return all models that requests may name. If a manifest from a URL is out of reach, the last one is used.

    Args:
        context: The arguments of the installation.
        ranks: As for `read_catalog`.

    Raises:
        SettingsError: `RUNED_MANIFEST` is neither a web URL nor a path, or a name of the settings cannot be used.
        DownloadError: The manifest cannot be fetched, and none is kept.
        ManifestError: The manifest cannot be used, and none is kept.
    """

    def build(document: Manifest) -> Awaitable[ModelNames]:
        def ranks_by_file(spec: ModelSpec) -> bool:
            return ranks(spec.path or context.paths.model(spec.name))

        # In a thread: each file of the user's own is read, which takes 0.1 s for a large vocabulary.
        return run_in_thread(lambda: build_catalog(context.settings, document, ranks_by_file))

    source = manifest.manifest_source(context.settings)
    if not source.is_url:
        return await build(manifest.read_local_manifest(source))
    kept = _kept_manifest(context, source)
    try:
        content = await _fetch(context, source, QUICK_LOOK if kept else context.policy)
        return await build(manifest.parse_manifest(content, source))
    except (DownloadError, ManifestError) as error:
        if kept is None:
            raise
        _log.warning("manifest out of reach, using the last one", problem=error.message)
        return await build(kept)


def keep_manifest(context: InstallContext, plan: Plan) -> None:
    """Keep the manifest of a plan if it was fetched. Call this when everything in the plan is installed."""
    if plan.fetched:
        write_atomically(_kept(context), msgspec.json.encode(plan.fetched))


def _kept(context: InstallContext) -> Path:
    return context.paths.cache / "manifest.json"


def _choose(settings: Settings, wanted: ModelSpec | None, document: Manifest) -> Plan:
    names = build_catalog(settings, document)
    spec = wanted or names.default
    model = spec.path or choice_of(spec, document)
    needs_engine = _needs_engine(settings, model)
    fetches = needs_engine and settings.llama_server is None
    platform = manifest.current_platform()
    return Plan(
        engine=document.engine(platform) if fetches else None,
        model=model,
        spec=spec,
        accelerated=document.accelerators(platform) if fetches and settings.engine not in {"cpu", ONNX} else (),
        variants=tuple(name for name in names.variants_of(spec) if spec.is_listed and names.specs[name].is_listed),
        known=frozenset(names.specs),
        needs_engine=needs_engine,
    )


def _needs_engine(settings: Settings, model: ModelChoice | Path) -> bool:
    """Return whether a model needs a `llama-server`: to serve it, or to make it by the `llama-quantize` beside it."""
    if isinstance(model, Path):
        return settings.engine != ONNX and not is_onnx(model)
    return settings.engine != ONNX or model.quantization is not None


def _kept_manifest(context: InstallContext, source: ManifestSource) -> Manifest | None:
    """Return the last manifest from a URL; None if it was from another URL, or cannot be read."""
    kept = read_record(_kept(context), _KeptManifest)
    if kept is None or kept.source != source.location:
        return None
    try:
        return manifest.parse_manifest(kept.content, source)
    except ManifestError:
        return None


def _last_plan(settings: Settings, wanted: ModelSpec | None, kept: Manifest) -> Plan | None:
    try:
        return _choose(settings, wanted, kept)
    except ManifestError:
        return None


async def _fetch(context: InstallContext, source: ManifestSource, policy: DownloadPolicy) -> bytes:
    from runed.bootstrap.network import fetch  # noqa: PLC0415 # as in `InstallContext.download`

    if source.location.startswith("http:"):
        _log.warning("the manifest comes by http, so anyone on the way can change what is installed", url=str(source))
    context.reporter.say(f"fetching {source}", downloading=policy is not QUICK_LOOK)
    return await fetch(
        context.hub.address(source.location),
        limit=manifest.MAX_MANIFEST_BYTES,
        policy=policy,
        proxies=context.proxies,
        hub=context.hub,
        on_retry=context.reporter.say,
    )
