"""Installs engine and model, in this order: plan, look, lock, engine, model, licences, engine for an accelerator.

A start that finds everything in place takes no lock and hashes no unchanged file. It uses the network only for a quick look at
a manifest from a URL. Everything else happens under `install.lock`, one process at a time. A crash at any step leaves the old
state or the new state.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain
from pathlib import Path

from runed.bootstrap.accelerators import Chooser, EngineOnDevice
from runed.bootstrap.audit import Audit
from runed.bootstrap.catalog import own_default
from runed.bootstrap.context import InstallContext
from runed.bootstrap.device_choice import read_choice
from runed.bootstrap.device_failures import DeviceFailures, DeviceUse
from runed.bootstrap.disk import file_errors, require_space
from runed.bootstrap.drivers import find_drivers
from runed.bootstrap.engine import Engine, EngineInstaller
from runed.bootstrap.hub import Hub
from runed.bootstrap.manifest import EngineChoice
from runed.bootstrap.model import Model, ModelInstaller
from runed.bootstrap.planning import Plan, check_own_files, find_catalog, keep_manifest, make_plan
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Progress, ProgressReporter
from runed.bootstrap.proxies import Proxies
from runed.domain.device import CPU, Device
from runed.domain.model_spec import ModelSpec
from runed.domain.names import ModelNames, check_default
from runed.errors import BootstrapError, DownloadError, SettingsError
from runed.files import write_atomically
from runed.locking import LockFile
from runed.paths import Paths, ensure_home, ensure_private_dir
from runed.settings import ACCELERATORS, ONNX, Settings, engine_environment
from runed.trust import check_contents

_LOCK_INTERVAL = 0.1
"""Seconds between two tries to get the install lock."""

_FEW_ATTEMPTS = 2
"""Attempts in a row to download the engine for an accelerator. Half a download is resumed by the next start."""

_BUILD = re.compile(r"(?:^|build )([0-9]{1,9})(?![0-9.])")
"""The release of llama.cpp in the version that an engine tells, as in "11194 (abc1234)" and "0.6.0 (build 11194, ...)"."""

_QWEN_LICENCE = "Qwen3-Embedding.txt"


@dataclass(frozen=True, slots=True)
class Installation:
    """An engine and a model that can be run.

    Attributes:
        llama_server: The `llama-server`; None if the model needs none.
        model: The model file.
        variant: The model's name in the manifest, or "" for a file that the user brings.
        model_sha256: The file's SHA-256 as 64 hexadecimal digits.
        engine_version: The version that `llama-server` tells, or "".
        warnings: Sentences for the user about everything that works, but not as requested.
        spec: The description of the model: its names, and the traits that manifest and settings tell.
        device: The device to run the engine on.
        device_use: The key of a failure of the device; None for the processors.
        device_uses: After a comparison of devices, the keys of all accelerators that it tells about.
        device_chosen_at: The time of the comparison in which the device was the fastest, in ISO 8601; "" if none decides.
        variants: The names of all variants of the model, this one included; empty for a model that the user brings.
        engine_build: A name of the build of `llama-server`. Another build has another one.
    """

    llama_server: Path | None
    model: Path
    variant: str
    model_sha256: str
    engine_version: str
    warnings: tuple[str, ...]
    spec: ModelSpec
    device: Device = CPU
    device_use: DeviceUse | None = None
    device_uses: tuple[DeviceUse, ...] = ()
    device_chosen_at: str = ""
    variants: tuple[str, ...] = ()
    engine_build: str = ""

    @property
    def program(self) -> Path:
        """The `llama-server` of a model that needs one."""
        assert self.llama_server is not None
        return self.llama_server


async def install(
    settings: Settings,
    paths: Paths,
    *,
    report: Callable[[Progress], None],
    check_model: Callable[[Path], None],
    wanted: ModelSpec | None = None,
    policy: DownloadPolicy = DownloadPolicy(),  # noqa: B008 # immutable
    failures: DeviceFailures | None = None,
    root: Path = Path("/"),
) -> Installation:
    """Install an engine and a model. What is in place is used; the rest is downloaded and verified.

    After a cancel, the next call goes on from the state that was reached, also in a download.

    Args:
        settings: The settings; `llama_server` is used as it is if set.
        paths: The paths of the home; missing directories are made.
        report: Called with the progress, a few times a second.
        check_model: Raises a RunedError for a file that is not a valid GGUF. Called in a thread, on models made here.
        wanted: The model of the catalog to install; None means the default one.
        policy: The number and the times of a download's tries.
        failures: The devices that failed before; None reads those of the home.
        root: The root directory of the machine, in which its drivers are looked for.

    Raises:
        SettingsError: A file that the user brings is missing or cannot be used, or the default model reranks.
        UnsupportedPlatformError: There is no engine to download for this machine.
        BootstrapError: See its subclasses: manifest, download, verification, disk space, archive.
        ForeignPathError: A directory of the home is not ours.
    """
    parts = await _get_parts(
        settings, paths, wanted, report=report, check_model=check_model, policy=policy, failures=failures, root=root
    )
    with file_errors("install engine and model"):
        return parts.on(await parts.chooser.choose()) if parts.chooser else parts.alone()


async def install_for_comparison(
    settings: Settings,
    paths: Paths,
    *,
    report: Callable[[Progress], None],
    check_model: Callable[[Path], None],
    policy: DownloadPolicy = DownloadPolicy(),  # noqa: B008 # immutable
    root: Path = Path("/"),
) -> list[Installation]:
    """Install a model, and a `llama-server` for each device that can compute it, within the bounds of the setting `engine`.

    The arguments and errors are those of `install`.

    Returns:
        What `install` returns, and then the same model on each other device.
    """
    parts = await _get_parts(
        settings, paths, None, report=report, check_model=check_model, policy=policy, failures=None, root=root
    )
    if parts.chooser is None:
        return [parts.alone()]
    with file_errors("install engine and model"):
        found = await parts.chooser.compare()
    uses = parts.chooser.settled(found)
    return [replace(parts.on(each), device_uses=uses) for each in found]


@dataclass(frozen=True, slots=True)
class _Parts:
    """An installed model, and what chooses the `llama-server` for it, if it needs one."""

    plan: Plan
    model: Model
    chooser: Chooser | None
    warnings: tuple[str, ...]

    def on(self, found: EngineOnDevice) -> Installation:
        """Return the installation on a device."""
        return replace(
            self.alone(),
            llama_server=found.engine.executable,
            engine_version=found.engine.version,
            engine_build=found.engine.build,
            warnings=(*self.warnings, *found.problems),
            device=found.device,
            device_use=found.use,
            device_chosen_at=found.chosen_at,
        )

    def alone(self) -> Installation:
        """Return the installation without a `llama-server`."""
        return Installation(
            llama_server=None,
            model=self.model.path,
            variant=self.model.variant,
            model_sha256=self.model.sha256,
            engine_version="",
            warnings=self.warnings,
            spec=self.plan.spec,
            variants=self.plan.variants,
        )


async def _get_parts(
    settings: Settings,
    paths: Paths,
    wanted: ModelSpec | None,
    *,
    report: Callable[[Progress], None],
    check_model: Callable[[Path], None],
    policy: DownloadPolicy,
    failures: DeviceFailures | None,
    root: Path,
) -> _Parts:
    own = wanted or own_default(settings)
    if own is not None and own.remote is not None:
        raise SettingsError(
            f"{own.name} is served by the engine at {own.remote.url}, so there is nothing to install or measure"
        )
    ensure_home(paths.home, trust_parents=settings.trust_parents)
    for directory in (paths.bin, paths.cache, paths.licenses):
        ensure_private_dir(directory)
    for accelerator in ("cpu", *ACCELERATORS):
        check_contents(paths.engine(accelerator))
    # Models may lie in the directory of a team: each is used for its hash, whoever wrote it.
    ensure_private_dir(paths.models, shared=True)
    with file_errors("install engine and model"):
        context = _context(settings, paths, report, policy)
        try:
            return await _run(context, wanted, check_model, failures or load_failures(settings, paths), root)
        except DownloadError as error:
            names = {"RUNED_LLAMA_SERVER": settings.llama_server, "RUNED_MODEL": settings.model}
            absent = " and ".join(name for name, path in names.items() if path is None)
            if wanted is not None or not absent:  # a file of the user's own is no answer to `runed pull NAME`
                raise
            raise error.retold(f"{error.message}; or use files of your own, by {absent}") from error


async def read_catalog(
    settings: Settings,
    paths: Paths,
    *,
    report: Callable[[Progress], None],
    ranks: Callable[[Path], bool],
    policy: DownloadPolicy = DownloadPolicy(),  # noqa: B008 # immutable
) -> ModelNames:
    """Return all models that requests may name; most of them need not be installed.

    Args:
        settings: The settings.
        paths: The paths of the home.
        report: Called with the progress if a manifest is fetched.
        ranks: Returns whether a file is that of a reranker; called in a thread, also for files that are not there. It decides
            for the models of the user's own of which the settings do not tell the kind.
        policy: As for `install`.

    Raises:
        SettingsError: `RUNED_MANIFEST` is neither a web URL nor a path, or a name of the settings cannot be used.
        BootstrapError: The manifest cannot be fetched or used, and no earlier one is kept.
    """
    return await find_catalog(_context(settings, paths, report, policy), ranks)


def _context(settings: Settings, paths: Paths, report: Callable[[Progress], None], policy: DownloadPolicy) -> InstallContext:
    return InstallContext(
        settings,
        paths,
        Audit(paths.installed, settings),
        ProgressReporter(report),
        policy,
        Proxies(),
        Hub.of(settings),
    )


def load_failures(settings: Settings, paths: Paths) -> DeviceFailures:
    """Read which devices failed before. An accelerator that the user names is tried again."""
    return DeviceFailures(paths.device_failures, forget=settings.engine)


async def _run(
    context: InstallContext,
    wanted: ModelSpec | None,
    check_model: Callable[[Path], None],
    failures: DeviceFailures,
    root: Path,
) -> _Parts:
    check_own_files(context.settings, wanted or own_default(context.settings))
    engines, models = EngineInstaller(context), ModelInstaller(context, check_model)

    async def current(plan: Plan) -> tuple[Engine | None, Model | None]:
        engine = await engines.current(plan.engine) if plan.needs_engine else None
        return engine, await models.current(plan.model)

    def is_missing(plan: Plan, engine: Engine | None) -> bool:
        return engine is None and plan.needs_engine

    async def is_in_place(plan: Plan) -> bool:
        engine, model = await current(plan)
        return not is_missing(plan, engine) and model is not None

    plan = await make_plan(context, wanted, is_in_place)
    if wanted is None:
        check_default(plan.spec)
    engine, model = await current(plan)
    if is_missing(plan, engine) or model is None:
        async with _locked(context) as waited:
            recovered = await engines.recover()
            if context.audit.reload() or waited or recovered:
                engines, models = EngineInstaller(context), ModelInstaller(context, check_model)
                engine, model = await current(plan)
            needed = engines.missing_bytes(plan.engine) if plan.engine and not engine else 0
            if model is None:
                assert not isinstance(plan.model, Path)
                needed += await models.missing_bytes(plan.model)
            # Before the first byte, so that an hour of downloading does not end because the disk is full.
            require_space(context.paths.home, needed, "installing engine and model")
            if is_missing(plan, engine):
                assert plan.engine is not None
                engine = await engines.install(plan.engine)
            _check_build(plan.spec, engine)
            if model is None:
                assert not isinstance(plan.model, Path)
                model = await models.install(plan.model, engine, notice=plan.spec.notice)
            _write_licences(plan, engine, context.paths.licenses)
            _remove_leftovers(context.paths.cache.glob("llama-server-*.download*"))
            _remove_leftovers(_abandoned(context.paths.models, plan.known))
    _check_build(plan.spec, engine)
    keep_manifest(context, plan)
    chooser = None if engine is None else _chooser(context, plan, engine, model, failures=failures, root=root)
    return _Parts(plan, model, chooser, tuple(filter(None, (plan.warning, *models.warnings, *context.proxies.warnings))))


def _chooser(
    context: InstallContext, plan: Plan, engine: Engine, model: Model, *, failures: DeviceFailures, root: Path
) -> Chooser:
    # ONNX Runtime serves a model that a llama-quantize had to make.
    setting = "cpu" if context.settings.engine == ONNX else context.settings.engine
    return Chooser(
        setting=setting,
        drivers=find_drivers(engine_environment(), root=root) if setting != "cpu" else [],
        failures=failures,
        base=engine,
        own=plan.engine is None,
        accelerated=plan.accelerated,
        obtain=partial(_obtain, context),
        model=(model.path, model.sha256),
        choice=read_choice(context.paths.device_choice, model.sha256),
    )


async def _obtain(context: InstallContext, choice: EngineChoice) -> Engine:
    """Return an engine for an accelerator, and install it before if it is not in place."""
    # The processors can serve, so nobody waits as long for a server as without any engine.
    patience = replace(context.policy, attempts=min(context.policy.attempts, _FEW_ATTEMPTS))
    context = replace(context, policy=patience)
    if engine := await EngineInstaller(context).current(choice):
        return engine
    async with _locked(context):
        context.audit.reload()
        engines = EngineInstaller(context)
        await engines.recover(choice.accelerator)
        if engine := await engines.current(choice):
            return engine
        require_space(context.paths.home, engines.missing_bytes(choice), f"installing the engine for {choice.accelerator}")
        engine = await engines.install(choice)
        _remove_leftovers(context.paths.cache.glob("accelerator-*.download*"))
        return engine


@asynccontextmanager
async def _locked(context: InstallContext) -> AsyncIterator[bool]:
    """Hold the install lock, and let others see how far the work is. Yield whether another process held it before."""
    with LockFile(context.paths.install_lock) as lock:
        waited = False
        while not lock.try_acquire():
            waited = True
            # A process that has just taken the lock may not have written its pid yet.
            if (holder := lock.holder()) is not None:
                context.reporter.relay(context.paths.install_progress, holder)
            await asyncio.sleep(_LOCK_INTERVAL)
        with context.reporter.shared(context.paths.install_progress):
            yield waited


def _check_build(spec: ModelSpec, engine: Engine | None) -> None:
    """Refuse a model that is newer than the engine, which would end with an error that says nothing to a user."""
    found = _BUILD.search(engine.version) if engine else None
    if engine and found and 0 < int(found[1]) < spec.engine_build:
        raise BootstrapError(
            f"{spec.name} needs llama-server b{spec.engine_build} or newer, and this one is {engine.version}; name a newer one "
            "as RUNED_LLAMA_SERVER, or choose another model (`runed models`)"
        )


def _abandoned(folder: Path, known: frozenset[str]) -> Iterator[Path]:
    """Yield the partial downloads of models that are not in the catalog any more. The others can be resumed."""
    for path in chain.from_iterable(folder.glob(f"*.gguf.partial{ending}") for ending in ("", ".json", ".new")):
        if path.name.rpartition(".gguf.partial")[0] not in known:
            yield path


def _remove_leftovers(downloads: Iterable[Path]) -> None:
    """Remove partial downloads that no later installation can resume."""
    for path in downloads:
        if path.is_symlink() or not path.is_dir():
            path.unlink()


def _write_licences(plan: Plan, engine: Engine | None, folder: Path) -> None:
    """Write the licences of engine and model. The text of the engine's archive wins over the package's."""
    packaged = resources.files(__package__).joinpath("licenses")
    if plan.engine and engine:
        own = engine.executable.with_name("LICENSE")
        text = (own if own.is_file() else packaged.joinpath("llama.cpp.txt")).read_bytes()
        write_atomically(folder / "llama.cpp.txt", text, mode=0o644)
    if plan.spec.name.startswith("qwen3-embedding"):
        write_atomically(folder / _QWEN_LICENCE, packaged.joinpath(_QWEN_LICENCE).read_bytes(), mode=0o644)
