"""Plans an installation: the engine and the model that the manifest names, except those that the user brings."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from runed.bootstrap import manifest
from runed.bootstrap.archive import is_executable
from runed.bootstrap.context import InstallContext
from runed.bootstrap.manifest import EngineChoice, Manifest, ManifestSource, ModelChoice
from runed.bootstrap.policy import QUICK_LOOK, DownloadPolicy
from runed.errors import DownloadError, ManifestError, SettingsError
from runed.files import read_record, write_atomically
from runed.log import get_logger
from runed.os_errors import forbids_programs, noexec
from runed.settings import Settings

_log = get_logger(__name__)


class _KeptManifest(msgspec.Struct, frozen=True):
    """The last manifest from a URL. The URL may be out of reach at the next start."""

    source: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """The engine and the model to install; None stands for the user's own. `warning` is for the user.

    `variants` are the names of all variants of the model, this one included; empty for the user's own. `accelerated` are
    the engines for accelerators. Which of them is installed depends on the machine.
    """

    engine: EngineChoice | None
    model: ModelChoice | None
    accelerated: tuple[EngineChoice, ...] = ()
    variants: tuple[str, ...] = ()
    warning: str = ""
    fetched: _KeptManifest | None = None


def check_own_files(settings: Settings) -> None:
    """Check the user's own engine and model, if there are any.

    Raises:
        SettingsError: One of them cannot be used.
    """
    engine, model = settings.llama_server, settings.model
    if engine and not is_executable(engine):
        problem = "is not an executable file" if engine.exists() else "does not exist"
        if engine.is_file() and forbids_programs(engine):
            problem = f"cannot be run: {noexec(engine)}"
        raise SettingsError(
            f"the engine {engine} {problem}; correct RUNED_LLAMA_SERVER (or llama_server in config.json), "
            "or unset it to have an engine installed"
        )
    if model and not (model.is_file() and os.access(model, os.R_OK)):
        problem = "is not a file that can be read" if model.exists() else "does not exist"
        raise SettingsError(
            f"the model {model} {problem}; correct RUNED_MODEL (or model in config.json), or unset it to have a model installed"
        )


async def make_plan(context: InstallContext, is_in_place: Callable[[Plan], Awaitable[bool]]) -> Plan:
    """Make the plan. If everything is installed, wait only a few seconds for a manifest from a URL.

    Args:
        context: The arguments of the installation.
        is_in_place: Returns whether everything in a plan is installed.

    Raises:
        SettingsError: `RUNED_MANIFEST` is neither a web URL nor a path.
        UnsupportedPlatformError: There is no engine to download for this machine.
        DownloadError: The manifest cannot be fetched, and the plan of the last one is not installed.
        ManifestError: The manifest cannot be used, and the plan of the last one is not installed.
    """
    settings = context.settings
    if settings.llama_server and settings.model:
        return Plan(None, None)
    source = manifest.manifest_source(settings)
    if not source.is_url:
        return _choose(settings, manifest.read_local_manifest(source))
    last = _last_plan(context, source)
    can_do_without = last is not None and await is_in_place(last)
    try:
        content = await _fetch(context, source, QUICK_LOOK if can_do_without else context.policy)
        plan = _choose(settings, manifest.parse_manifest(content, source))
    except (DownloadError, ManifestError) as error:
        if last is None or not can_do_without:
            raise
        _log.warning("manifest out of reach, using the installed files", problem=error.message)
        return replace(last, warning=f"the installed files are used, since the manifest could not be: {error.message}")
    return replace(plan, fetched=_KeptManifest(source.location, content))


def keep_manifest(context: InstallContext, plan: Plan) -> None:
    """Keep the manifest of a plan if it was fetched. Call this when everything in the plan is installed."""
    if plan.fetched:
        write_atomically(_kept(context), msgspec.json.encode(plan.fetched))


def _kept(context: InstallContext) -> Path:
    return context.paths.cache / "manifest.json"


def _choose(settings: Settings, document: Manifest) -> Plan:
    own = settings.llama_server is not None
    return Plan(
        engine=None if own else document.engine(manifest.current_platform()),
        model=None if settings.model else document.model(settings.model_variant),
        accelerated=() if own or settings.engine == "cpu" else document.accelerators(manifest.current_platform()),
        variants=() if settings.model else document.variants(settings.model_variant),
    )


def _last_plan(context: InstallContext, source: ManifestSource) -> Plan | None:
    """Return the plan of the kept manifest, or None if the manifest is from another URL or the plan is not installed."""
    kept = read_record(_kept(context), _KeptManifest)
    if kept is None or kept.source != source.location:
        return None
    try:
        return _choose(context.settings, manifest.parse_manifest(kept.content, source))
    except ManifestError:
        return None


async def _fetch(context: InstallContext, source: ManifestSource, policy: DownloadPolicy) -> bytes:
    from runed.bootstrap.network import fetch  # noqa: PLC0415 # as in `InstallContext.download`

    if source.location.startswith("http:"):
        _log.warning("the manifest comes by http, so anyone on the way can change what is installed", url=str(source))
    context.reporter.say(f"fetching {source}", downloading=policy is not QUICK_LOOK)
    return await fetch(source.location, limit=manifest.MAX_MANIFEST_BYTES, policy=policy, proxies=context.proxies)
