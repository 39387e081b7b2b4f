"""Gets the engine: finds the installed `llama-server`, or downloads one, unpacks it, runs it once and swaps it in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from runed.bootstrap import archive, programs
from runed.bootstrap.audit import EngineRecord, now
from runed.bootstrap.context import InstallContext
from runed.bootstrap.disk import sha256_of
from runed.bootstrap.manifest import EngineChoice
from runed.bootstrap.partial_files import partial_size
from runed.bootstrap.progress import Phase
from runed.errors import BootstrapError
from runed.files import MAX_RECORD_BYTES, read_regular, run_in_thread, write_atomically
from runed.log import get_logger
from runed.urls import printable_url

_EXTRACTED_RATIO = 4
"""Assumed size of an archive's content, in multiples of the archive's size, for a first check of the disk. 3 to 4 are usual."""

_OWN_VERSION_TIMEOUT = 5.0
"""Seconds that the user's own engine may take to tell its version. It serves without a version, too."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """An installed engine, with the version that it tells, or ""."""

    executable: Path
    version: str


class EngineInstaller:
    """Finds and installs engines."""

    def __init__(self, context: InstallContext) -> None:
        self._context = context
        self._paths = context.paths
        self._fresh = context.paths.bin / ".llama-cpp.new"
        self._retired = context.paths.bin / ".llama-cpp.old"
        self._found: dict[EngineChoice | None, Engine | None] = {}

    async def current(self, choice: EngineChoice | None) -> Engine | None:
        """Return an engine (None: the user's own) if it is in place. Each is checked once, since a check runs the program."""
        if choice not in self._found:
            self._found[choice] = await (self._look(choice) if choice else self._look_at_own())
        return self._found[choice]

    async def recover(self) -> bool:
        """Clean up after a process that died during an installation. Return whether the old engine is back in its place."""
        return await run_in_thread(lambda: archive.recover(self._fresh, self._paths.llama_cpp, self._retired))

    def missing_bytes(self, choice: EngineChoice) -> int:
        """Return the approximate bytes that an installation needs on the disk."""
        return (1 + _EXTRACTED_RATIO) * choice.artefact.size - partial_size(self._download_path(choice))

    async def install(self, choice: EngineChoice) -> Engine:
        """Download an engine and replace the installed one.

        Raises:
            BootstrapError: See its subclasses: download, verification, disk space, archive; or the engine does not run.
        """
        artefact, file = choice.artefact, self._download_path(choice)
        # A verified archive that does not work is not downloaded again at every try.
        whole = file.is_file() and file.stat().st_size == artefact.size
        if not (whole and await sha256_of(file) == artefact.sha256):
            await self._context.download(artefact, file, Phase.FETCHING_LLAMA_SERVER, "llama-server")
        self._context.reporter.begin(Phase.FETCHING_LLAMA_SERVER, 0, "unpacking llama-server")
        engine = Engine(self._paths.llama_cpp / choice.executable, await self._unpack(file, choice))
        self._context.audit.installed.llama_server = EngineRecord(
            url=printable_url(artefact.url),
            sha256=artefact.sha256,
            size=artefact.size,
            executable=str(engine.executable.relative_to(self._paths.home)),
            version=engine.version,
            installed_at=now(),
        )
        self._context.audit.save()
        file.unlink()
        _log.info("engine installed", version=engine.version, sha256=artefact.sha256)
        return engine

    async def _look(self, choice: EngineChoice) -> Engine | None:
        executable = self._paths.llama_cpp / choice.executable
        marker = self._paths.llama_cpp_marker
        try:
            marked = read_regular(marker, limit=MAX_RECORD_BYTES).strip() == choice.artefact.sha256.encode()
        except OSError:
            marked = False
        if not (marked and archive.is_executable(executable)):
            return None
        try:
            return Engine(executable, await programs.engine_version(executable))
        except BootstrapError as error:  # a library beside the program may be gone, which neither marker nor path show
            _log.warning("the engine in place does not run and is installed anew", problem=error.message)
            return None

    async def _look_at_own(self) -> Engine:
        own = self._context.settings.llama_server
        assert own is not None
        try:
            return Engine(own, await programs.engine_version(own, timeout=_OWN_VERSION_TIMEOUT))
        except BootstrapError as error:
            _log.warning("the engine does not tell its version", problem=error.message)
            return Engine(own, "")

    def _download_path(self, choice: EngineChoice) -> Path:
        return self._paths.cache / f"llama-server-{choice.artefact.sha256[:16]}.download"

    async def _unpack(self, file: Path, choice: EngineChoice) -> str:
        """Install an engine if it runs, and return its version."""
        fresh = self._fresh
        try:
            if choice.is_archive:
                await run_in_thread(lambda: archive.extract(file, fresh))
            else:
                await run_in_thread(lambda: archive.place_program(file, fresh, choice.executable))
            version = await programs.engine_version(archive.check_executable(fresh, choice.executable))
            # The marker comes last, so that a folder with a marker works.
            write_atomically(fresh / self._paths.llama_cpp_marker.name, f"{choice.artefact.sha256}\n".encode())
            await run_in_thread(lambda: archive.swap_in(fresh, self._paths.llama_cpp, self._retired))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return version
