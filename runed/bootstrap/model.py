"""Gets the model: finds the installed GGUF, or downloads it, or derives it from another one by `llama-quantize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runed.bootstrap import archive, programs
from runed.bootstrap.audit import Derivation, ModelRecord, VerifiedFiles, now
from runed.bootstrap.context import InstallContext
from runed.bootstrap.disk import file_errors, sha256_of
from runed.bootstrap.engine import Engine
from runed.bootstrap.manifest import ModelChoice
from runed.bootstrap.partial_files import partial_path, partial_size
from runed.bootstrap.progress import Phase
from runed.errors import BootstrapError, RunedError
from runed.files import replace_durably, run_in_thread
from runed.log import get_logger
from runed.urls import printable_url

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """An installed model, with its name in the manifest, or "" for the user's own model."""

    path: Path
    variant: str
    sha256: str


class ModelInstaller:
    """Finds and installs models.

    Args:
        context: The arguments of the installation.
        check: See `check_model` of `install`.

    Attributes:
        warnings: Sentences for the user.
    """

    def __init__(self, context: InstallContext, check: Callable[[Path], None]) -> None:
        self._context = context
        self._paths = context.paths
        self._check = check
        self._verified = VerifiedFiles(context.paths, announce=lambda step: context.reporter.begin(Phase.FETCHING_MODEL, step))
        self._found: dict[ModelChoice | Path, Model | None] = {}
        self.warnings: list[str] = []

    async def current(self, choice: ModelChoice | Path) -> Model | None:
        """Return a model, or the user's own file, if it is in place. Each is checked once, since a check may hash the file."""
        if choice not in self._found:
            self._found[choice] = await (self._look_at_own(choice) if isinstance(choice, Path) else self._look(choice))
        return self._found[choice]

    async def missing_bytes(self, choice: ModelChoice) -> int:
        """Return the approximate bytes that an installation needs on the disk."""
        if choice.quantization is None:
            return (choice.source.size or 0) - partial_size(self._paths.model(choice.variant))
        # A derived model is smaller than its source, but only llama-quantize knows its size. If the source is in place, no room
        # is required: without room for both files, the source serves.
        source = choice.source_only()
        return 0 if await self.current(source) else await self.missing_bytes(source) + (source.source.size or 0)

    async def install(self, choice: ModelChoice, engine: Engine | None, *, notice: str = "") -> Model:
        """Download a model, or derive it by the `llama-quantize` of an engine.

        Args:
            choice: The model.
            engine: The engine; None suffices for a model that is downloaded.
            notice: What the user must know of the licence before a download, or "".

        Returns:
            The model; or its source, with a warning, if it cannot be derived.

        Raises:
            BootstrapError: See its subclasses: download, verification, disk space.
        """
        if choice.quantization is None:
            return await self._download(choice, notice)
        assert engine is not None
        source = await self.current(choice.source_only()) or await self._download(choice.source_only(), notice)
        try:
            with file_errors(f"make {choice.variant}"):
                return await self._derive(choice, choice.quantization, source, engine)
        except RunedError as error:
            _log.warning("model could not be derived", variant=choice.variant, problem=error.message)
            self.warnings.append(
                f"{source.variant} serves instead of {choice.variant}, which could not be made from it: {error.message}; "
                "the next start tries again"
            )
            return source

    @property
    def _installed(self) -> dict[str, ModelRecord]:
        return self._context.audit.installed.models

    async def _look_at_own(self, own: Path) -> Model:
        return Model(own, "", await self._verified.sha256_of_model(own))

    async def _look(self, choice: ModelChoice) -> Model | None:
        path = self._paths.model(choice.variant)
        size, sha256 = self._expected(choice)
        if not path.is_file():
            return None
        if size not in {None, path.stat().st_size} or await self._verified.sha256(path) != sha256:
            _log.warning("the model in place is not the one to serve", file=path.name)
            return None
        return Model(path, choice.variant, sha256)

    def _expected(self, choice: ModelChoice) -> tuple[int | None, str]:
        """Return size and hash of a model. A derived model was made here, so only the audit knows them."""
        record = self._installed.get(choice.variant)
        if choice.quantization is None:
            # The hash that the user has not pinned is that of the first download.
            first = record.sha256 if record and record.url == printable_url(choice.source.url) else ""
            return choice.source.size, choice.source.sha256 or first
        made = record.derived_from if record else None
        if record is None or made is None or (made.sha256, made.type) != (choice.source.sha256, choice.quantization):
            return -1, ""
        return record.size, record.sha256

    async def _download(self, choice: ModelChoice, notice: str) -> Model:
        path = self._paths.model(choice.variant)
        licence = f", under the licence {notice}" if notice else ""
        sha256 = await self._context.download(choice.source, path, Phase.FETCHING_MODEL, f"{choice.variant}{licence}")
        return self._record(choice, path, sha256, None)

    async def _derive(self, choice: ModelChoice, quantization: str, source: Model, engine: Engine) -> Model:
        step = f"making {choice.variant} of {source.variant}"
        self._context.reporter.begin(Phase.FETCHING_MODEL, step)
        path = self._paths.model(choice.variant)
        partial = partial_path(path)
        # Not overwritten: a llama-quantize that outlived its killed parent (macOS) may still write to it.
        partial.unlink(missing_ok=True)
        try:
            await programs.quantize(
                _quantizer(engine),
                source.path,
                partial,
                quantization,
                on_tensor=lambda number, total: self._context.reporter.work(f"{step}: tensor {number} of {total}"),
            )
            await run_in_thread(lambda: self._check(partial))
            sha256 = await sha256_of(partial)
            await run_in_thread(lambda: replace_durably(partial, path))
        finally:
            partial.unlink(missing_ok=True)
        made = Derivation(source.variant, source.sha256, quantization, engine.version)
        model = self._record(choice, path, sha256, made)
        if not self._context.settings.keep_source:
            source.path.unlink()
            self._installed.pop(source.variant, None)
            self._context.audit.save()
        return model

    def _record(self, choice: ModelChoice, path: Path, sha256: str, made: Derivation | None) -> Model:
        self._verified.remember(path, sha256)
        url, size = printable_url(choice.source.url), path.stat().st_size
        self._installed[choice.variant] = ModelRecord(url, sha256, size, now(), derived_from=made)
        self._context.audit.save()
        _log.info("model installed", variant=choice.variant, sha256=sha256)
        return Model(path, choice.variant, sha256)


def _quantizer(engine: Engine) -> Path:
    """Find the `llama-quantize` of an engine, which may be a link to a folder that holds both."""
    for executable in (engine.executable, engine.executable.resolve()):
        program = executable.with_name("llama-quantize")
        if archive.is_executable(program):
            return program
    raise BootstrapError(
        f"there is no llama-quantize beside {engine.executable}, which makes the model from its download; put the one of the "
        "same build there, unset RUNED_LLAMA_SERVER, or choose a variant that is downloaded as it is (`runed models`)"
    )
