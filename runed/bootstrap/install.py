"""What is installed, in what order, and what of it is there already.

A bootstrap ends with an engine and a model that can be run. What is there is used: a start with everything in place takes no
lock, touches no network but for a short look at a manifest from a URL, and computes no hash of a file that did not change.
All else happens under `install.lock`, one process at a time, and each step so that a crash leaves the old state or the new.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from runed.bootstrap import archive, programs
from runed.bootstrap.audit import (
    Derivation,
    EngineRecord,
    ModelRecord,
    VerifiedFiles,
    load_installed,
    now,
    save_installed,
)
from runed.bootstrap.disk import file_errors, require_space, sha256_of
from runed.bootstrap.manifest import (
    MAX_MANIFEST_BYTES,
    Artefact,
    EngineChoice,
    Manifest,
    ManifestSource,
    ModelChoice,
    current_platform,
    manifest_source,
    parse_manifest,
    printable_url,
    read_local_manifest,
)
from runed.bootstrap.partial import partial_path, partial_size
from runed.bootstrap.policy import QUICK_LOOK, DownloadPolicy
from runed.bootstrap.progress import Phase, Progress, ProgressReporter
from runed.domain.model import ModelTraits
from runed.errors import BootstrapError, DownloadError, ManifestError, RunedError, SettingsError
from runed.files import replace_durably, run_in_thread, write_atomically
from runed.locking import LockFile
from runed.log import get_logger
from runed.paths import Paths, ensure_private_dir
from runed.settings import Settings

__all__ = ["DownloadPolicy", "Installation", "Phase", "Progress", "install"]

_EXTRACTED_RATIO = 4
"""How much larger the content of an engine's archive is than the archive, for a first look at the disk: 3 to 4 are usual."""

_LOCK_INTERVAL = 0.1
"""Seconds between two tries to get the install lock."""

_OWN_ENGINE_VERSION_TIMEOUT = 5.0
"""Seconds for an engine of the user's own to tell its version, without which it serves as well."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Installation:
    """What a bootstrap ends with.

    Attributes:
        llama_server: The engine.
        model: The model file.
        variant: Its name in the manifest, or "" for a file of the user's own.
        model_sha256: The file's SHA-256 as 64 hexadecimal digits.
        engine_version: What the engine calls itself, or "".
        warnings: Sentences for the user: what works, but not as it was asked for.
        traits: How the model wants to be used, or None if no manifest tells.
    """

    llama_server: Path
    model: Path
    variant: str
    model_sha256: str
    engine_version: str
    warnings: tuple[str, ...]
    traits: ModelTraits | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to have; None stands for what the user brought along."""

    engine: EngineChoice | None
    model: ModelChoice | None


@dataclass(frozen=True, slots=True)
class _Engine:
    executable: Path
    version: str


@dataclass(frozen=True, slots=True)
class _Model:
    path: Path
    variant: str
    sha256: str


class _CachedManifest(msgspec.Struct, frozen=True):
    """The manifest that was followed last, in `cache/manifest.json`: a URL may be out of reach at the next start."""

    source: str
    content: bytes


async def install(
    settings: Settings,
    paths: Paths,
    *,
    report: Callable[[Progress], None],
    check_model: Callable[[Path], None],
    policy: DownloadPolicy = DownloadPolicy(),  # noqa: B008 # immutable
) -> Installation:
    """Have an engine and a model in place: use what is there, fetch and verify what is not.

    A cancel leaves a state from which the next call goes on, downloads included.

    Args:
        settings: The settings; `llama_server` and `model` are used as they are if set.
        paths: The paths of the home; missing directories are made.
        report: Told the progress, a few times a second.
        check_model: Raises a RunedError for a file that is not a sound GGUF; called in a thread, on models made here.
        policy: When downloads are tried again.

    Raises:
        SettingsError: A file of the user's own is missing or cannot be used.
        UnsupportedPlatformError: There is no engine to download for this machine.
        BootstrapError: See its subclasses: manifest, download, verification, disk space, archive.
        ForeignPathError: A directory of the home is not ours.
    """
    for directory in (paths.home, paths.bin, paths.models, paths.cache, paths.licenses):
        ensure_private_dir(directory)
    with file_errors("install engine and model"):
        return await _Bootstrap(settings, paths, ProgressReporter(report), check_model, policy).run()


class _Bootstrap:
    """One run of `install`, whose arguments it has."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        reporter: ProgressReporter,
        check_model: Callable[[Path], None],
        policy: DownloadPolicy,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._reporter = reporter
        self._check_model = check_model
        self._policy = policy
        self._verified = VerifiedFiles(paths, announce=lambda step: reporter.begin(Phase.FETCHING_MODEL, 0, step))
        self._installed = load_installed(paths)
        self._warnings: list[str] = []
        self._fetched: _CachedManifest | None = None

    async def run(self) -> Installation:
        self._check_own_files()
        plan = await self._plan()
        engine = await self._current_engine(plan.engine)
        model = await self._current_model(plan.model)
        if engine is None or model is None:
            with LockFile(self._paths.install_lock) as lock:
                await self._wait_for(lock)
                engine, model = await self._complete(plan)
        if self._fetched:
            write_atomically(self._cached_manifest, msgspec.json.encode(self._fetched))
        return Installation(
            llama_server=engine.executable,
            model=model.path,
            variant=model.variant,
            model_sha256=model.sha256,
            engine_version=engine.version,
            warnings=tuple(self._warnings),
            traits=plan.model.traits if plan.model else None,
        )

    def _check_own_files(self) -> None:
        engine, model = self._settings.llama_server, self._settings.model
        if engine and not archive.is_executable(engine):
            problem = "is not an executable file" if engine.exists() else "does not exist"
            raise SettingsError(
                f"the engine {engine} {problem}; correct RUNED_LLAMA_SERVER (or llama_server in config.json), "
                "or unset it to have an engine installed"
            )
        if model and not (model.is_file() and os.access(model, os.R_OK)):
            problem = "is not a file that can be read" if model.exists() else "does not exist"
            raise SettingsError(
                f"the model {model} {problem}; correct RUNED_MODEL (or model in config.json), "
                "or unset it to have a model installed"
            )

    # Planning

    async def _plan(self) -> _Plan:
        if self._settings.llama_server and self._settings.model:
            return _Plan(None, None)
        source = manifest_source(self._settings)
        if not source.is_url:
            return self._choose(read_local_manifest(source))
        cached = self._read_cached(source)
        # A start that needs nothing from the network does not wait for it either.
        can_do_without = cached is not None and await self._is_in_place(cached)
        try:
            return self._choose(await self._fetch_manifest(source, QUICK_LOOK if can_do_without else self._policy))
        except (DownloadError, ManifestError) as error:
            if cached is None or not can_do_without:
                raise
            self._warnings.append(f"what is installed is used, since the manifest could not be: {error.message}")
            _log.warning("manifest out of reach, using what is installed", problem=error.message)
            return cached

    def _choose(self, manifest: Manifest) -> _Plan:
        return _Plan(
            engine=None if self._settings.llama_server else manifest.engine(current_platform()),
            model=None if self._settings.model else manifest.model(self._settings.model_variant),
        )

    def _read_cached(self, source: ManifestSource) -> _Plan | None:
        """Give the plan of the manifest that was followed last, if it is from the same place and has what is asked for."""
        try:
            cached = msgspec.json.decode(self._cached_manifest.read_bytes(), type=_CachedManifest)
            return self._choose(parse_manifest(cached.content, source)) if cached.source == source.location else None
        except (OSError, msgspec.DecodeError, ManifestError):
            return None

    async def _fetch_manifest(self, source: ManifestSource, policy: DownloadPolicy) -> Manifest:
        from runed.bootstrap.download import fetch  # noqa: PLC0415 # httpx is memory that most starts never need

        if source.location.startswith("http:"):
            _log.warning("the manifest comes by http, so anyone on the way can change what is installed", url=str(source))
        self._reporter.say(f"fetching {source}", downloading=policy is not QUICK_LOOK)
        content = await fetch(source.location, limit=MAX_MANIFEST_BYTES, policy=policy)
        self._fetched = _CachedManifest(source.location, content)
        return parse_manifest(content, source)

    @property
    def _cached_manifest(self) -> Path:
        return self._paths.cache / "manifest.json"

    # What is there

    async def _is_in_place(self, plan: _Plan) -> bool:
        return await self._current_engine(plan.engine) is not None and await self._current_model(plan.model) is not None

    async def _current_engine(self, choice: EngineChoice | None) -> _Engine | None:
        if choice is None:
            return await self._own_engine()
        executable = self._paths.llama_cpp / choice.executable
        sha256 = choice.artefact.sha256
        marker = self._paths.llama_cpp_marker
        if not (marker.is_file() and marker.read_text().strip() == sha256 and archive.is_executable(executable)):
            return None
        try:
            return _Engine(executable, await programs.engine_version(executable))
        except BootstrapError as error:  # a library beside it may be gone, which neither marker nor program show
            _log.warning("the engine in place does not run and is installed anew", problem=error.message)
            return None

    async def _own_engine(self) -> _Engine:
        executable = self._settings.llama_server
        assert executable is not None
        try:
            version = await programs.engine_version(executable, timeout=_OWN_ENGINE_VERSION_TIMEOUT)
        except BootstrapError as error:
            _log.warning("the engine does not tell its version", problem=error.message)
            version = ""
        return _Engine(executable, version)

    async def _current_model(self, choice: ModelChoice | None) -> _Model | None:
        if choice is None:
            path = self._settings.model
            assert path is not None
            return _Model(path, "", await self._verified.sha256(path))
        path = self._paths.model(choice.variant)
        size, sha256 = self._expected(choice)
        if not path.is_file():
            return None
        if path.stat().st_size != size or await self._verified.sha256(path) != sha256:
            _log.warning("the model in place is not the one to serve", file=path.name)
            return None
        return _Model(path, choice.variant, sha256)

    def _expected(self, choice: ModelChoice) -> tuple[int, str]:
        """Give size and hash of a model; those of a derived one are known only since it was made here."""
        if choice.quantization is None:
            return choice.source.size, choice.source.sha256
        record = self._installed.models.get(choice.variant)
        made = record.derived_from if record else None
        if record is None or made is None or (made.sha256, made.type) != (choice.source.sha256, choice.quantization):
            return -1, ""
        return record.size, record.sha256

    # What is not

    async def _wait_for(self, lock: LockFile) -> None:
        told = None
        while not lock.try_acquire():
            # A holder of this very moment may not have written its pid yet.
            if (holder := lock.holder()) not in {told, None}:
                told = holder
                message = f"waiting for process {holder}, which installs engine and model"
                _log.info("bootstrap", step=message)
                self._reporter.say(message, downloading=True)
            await asyncio.sleep(_LOCK_INTERVAL)

    async def _complete(self, plan: _Plan) -> tuple[_Engine, _Model]:
        """Install what is missing; the lock is held."""
        # Another process may have installed it while this one waited.
        self._installed = load_installed(self._paths)
        await run_in_thread(lambda: archive.recover(self._fresh_engine, self._paths.llama_cpp, self._retired_engine))
        engine, model = await self._current_engine(plan.engine), await self._current_model(plan.model)
        await self._check_space(None if engine else plan.engine, None if model else plan.model)
        if engine is None:
            assert plan.engine is not None
            engine = await self._install_engine(plan.engine)
        if model is None:
            assert plan.model is not None
            model = await self._install_model(plan.model, engine)
        self._write_licences(plan, engine)
        self._remove_leftovers()
        return engine, model

    @property
    def _fresh_engine(self) -> Path:
        return self._paths.bin / ".llama-cpp.new"

    @property
    def _retired_engine(self) -> Path:
        return self._paths.bin / ".llama-cpp.old"

    async def _check_space(self, engine: EngineChoice | None, model: ModelChoice | None) -> None:
        """Check the disk for what is to be installed, before an hour of downloading ends for want of room."""
        needed = 0
        if engine:
            needed += (1 + _EXTRACTED_RATIO) * engine.artefact.size - partial_size(self._engine_download(engine))
        if model and not (model.quantization and await self._current_model(model.source_only())):
            needed += model.source.size - partial_size(self._paths.model(model.source_variant))
            # What it is derived to is smaller, but by how much only llama-quantize knows. Where the source is in place, that
            # may just try: without room for both, the source serves.
            needed += model.source.size if model.quantization else 0
        require_space(self._paths.home, needed, "installing engine and model")

    async def _install_engine(self, choice: EngineChoice) -> _Engine:
        artefact = choice.artefact
        file = self._engine_download(choice)
        # An archive that was verified but did not work is not downloaded again at every try.
        if not (file.exists() and await sha256_of(file) == artefact.sha256):
            size = artefact.size / 1e6
            await self._fetch(artefact, file, Phase.FETCHING_LLAMA_SERVER, f"downloading llama-server ({size:,.0f} MB)")
        self._reporter.begin(Phase.FETCHING_LLAMA_SERVER, 0, "unpacking llama-server")
        fresh, place = self._fresh_engine, self._paths.llama_cpp
        try:
            if choice.is_archive:
                await run_in_thread(lambda: archive.extract(file, fresh))
            else:
                await run_in_thread(lambda: archive.place_program(file, fresh, choice.executable))
            version = await programs.engine_version(archive.check_executable(fresh, choice.executable))
            # Last, so that a folder with the marker is a folder that works.
            write_atomically(fresh / self._paths.llama_cpp_marker.name, f"{artefact.sha256}\n".encode())
            await run_in_thread(lambda: archive.swap_in(fresh, place, self._retired_engine))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        executable = place / choice.executable
        self._installed.llama_server = EngineRecord(
            url=printable_url(artefact.url),
            sha256=artefact.sha256,
            size=artefact.size,
            executable=str(executable.relative_to(self._paths.home)),
            version=version,
            installed_at=now(),
        )
        self._save_installed()
        file.unlink()
        _log.info("engine installed", version=version, sha256=artefact.sha256)
        return _Engine(executable, version)

    def _engine_download(self, choice: EngineChoice) -> Path:
        return self._paths.cache / f"llama-server-{choice.artefact.sha256[:16]}.download"

    async def _install_model(self, choice: ModelChoice, engine: _Engine) -> _Model:
        if choice.quantization is None:
            return await self._download_model(choice)
        source = await self._current_model(choice.source_only()) or await self._download_model(choice.source_only())
        try:
            with file_errors(f"make {choice.variant}"):
                return await self._derive(choice, choice.quantization, source, engine)
        except RunedError as error:
            _log.warning("model could not be derived", variant=choice.variant, problem=error.message)
            self._warnings.append(
                f"{source.variant} serves instead of {choice.variant}, which could not be made of it: {error.message}; "
                "the next start tries again"
            )
            return source

    async def _download_model(self, choice: ModelChoice) -> _Model:
        path = self._paths.model(choice.variant)
        message = f"downloading {choice.variant} ({choice.source.size / 1e6:,.0f} MB)"
        await self._fetch(choice.source, path, Phase.FETCHING_MODEL, message)
        self._record_model(choice, path, choice.source.sha256, None)
        return _Model(path, choice.variant, choice.source.sha256)

    async def _derive(self, choice: ModelChoice, quantization: str, source: _Model, engine: _Engine) -> _Model:
        step = f"making {choice.variant} of {source.variant}"
        self._reporter.begin(Phase.FETCHING_MODEL, 0, step)
        path = self._paths.model(choice.variant)
        partial = partial_path(path)
        # Not overwritten: where a killed process cannot take its llama-quantize along, that one may still write to it.
        partial.unlink(missing_ok=True)
        try:
            await programs.quantize(
                self._quantizer(engine),
                source.path,
                partial,
                quantization,
                on_tensor=lambda number, total: self._reporter.work(f"{step}: tensor {number} of {total}"),
            )
            await run_in_thread(lambda: self._check_model(partial))
            sha256 = await sha256_of(partial)
            await run_in_thread(lambda: replace_durably(partial, path))
        finally:
            partial.unlink(missing_ok=True)
        self._record_model(choice, path, sha256, Derivation(source.variant, source.sha256, quantization, engine.version))
        if not self._settings.keep_source:
            source.path.unlink()
            self._installed.models.pop(source.variant, None)
            self._save_installed()
        return _Model(path, choice.variant, sha256)

    def _quantizer(self, engine: _Engine) -> Path:
        """Find the `llama-quantize` of the engine, which may be a link to where both are."""
        for executable in (engine.executable, engine.executable.resolve()):
            program = executable.with_name("llama-quantize")
            if archive.is_executable(program):
                return program
        raise BootstrapError(f"there is no llama-quantize beside {engine.executable}")

    async def _fetch(self, artefact: Artefact, target: Path, phase: Phase, message: str) -> None:
        from runed.bootstrap.download import download  # noqa: PLC0415 # as in `_fetch_manifest`

        self._reporter.begin(phase, artefact.size, message)
        await download(artefact, target, policy=self._policy, on_bytes=self._reporter.advance, on_retry=self._reporter.say)

    def _record_model(self, choice: ModelChoice, path: Path, sha256: str, made: Derivation | None) -> None:
        self._verified.remember(path, sha256)
        self._installed.models[choice.variant] = ModelRecord(
            url=printable_url(choice.source.url),
            sha256=sha256,
            size=path.stat().st_size,
            installed_at=now(),
            derived_from=made,
        )
        self._save_installed()
        _log.info("model installed", variant=choice.variant, sha256=sha256)

    def _save_installed(self) -> None:
        self._installed.manifest = str(manifest_source(self._settings))
        save_installed(self._paths, self._installed)

    def _write_licences(self, plan: _Plan, engine: _Engine) -> None:
        """Lay down the licences of what was installed; the text that an archive brings along wins over the package's."""
        if plan.engine:
            own = engine.executable.with_name("LICENSE")
            self._write_licence("llama.cpp.txt", own.read_bytes() if own.is_file() else None)
        if plan.model and plan.model.variant.startswith("qwen3-embedding"):
            self._write_licence("Qwen3-Embedding.txt", None)

    def _write_licence(self, name: str, text: bytes | None) -> None:
        packaged = resources.files(__package__).joinpath("licenses", name)
        write_atomically(self._paths.licenses / name, packaged.read_bytes() if text is None else text, mode=0o644)

    def _remove_leftovers(self) -> None:
        """Remove what downloads left behind that nobody will go on with."""
        for pattern in ("*.partial", "*.partial.json"):
            for path in self._paths.models.glob(pattern):
                path.unlink()
        for path in self._paths.cache.glob("llama-server-*.download*"):
            path.unlink()
