"""Gets the engine: finds the installed `llama-server`, or downloads one, unpacks it, runs it once and swaps it in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runed.bootstrap import archive, programs
from runed.bootstrap.audit import EngineRecord, now
from runed.bootstrap.context import InstallContext
from runed.bootstrap.disk import sha256_of
from runed.bootstrap.manifest import Artefact, EngineChoice
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
    """An installed engine.

    Attributes:
        executable: The program.
        version: The version that it tells, or "".
        build: A name of this build. Another build has another one.
    """

    executable: Path
    version: str
    build: str


class EngineInstaller:
    """Finds and installs engines."""

    def __init__(self, context: InstallContext) -> None:
        self._context = context
        self._paths = context.paths
        self._found: dict[EngineChoice | None, Engine | None] = {}

    async def current(self, choice: EngineChoice | None) -> Engine | None:
        """Return an engine (None: the user's own) if it is in place. Each is checked once, since a check runs the program."""
        if choice not in self._found:
            self._found[choice] = await (self._look(choice) if choice else self._look_at_own())
        return self._found[choice]

    async def recover(self, accelerator: str = "cpu") -> bool:
        """Clean up after a process that died during an installation. Return whether the old engine is back in its place."""
        places = self._places(accelerator)
        return await run_in_thread(lambda: archive.recover(*places))

    def missing_bytes(self, choice: EngineChoice) -> int:
        """Return the approximate bytes that an installation needs on the disk."""
        whole = sum(artefact.size or 0 for artefact in choice.artefacts)
        return (1 + _EXTRACTED_RATIO) * whole - sum(
            partial_size(self._download_path(choice, each)) for each in choice.artefacts
        )

    async def install(self, choice: EngineChoice) -> Engine:
        """Download an engine and replace the installed one.

        Raises:
            BootstrapError: See its subclasses: download, verification, disk space, archive; or the engine does not run.
        """
        files = [await self._download(choice, artefact) for artefact in choice.artefacts]
        self._context.reporter.begin(Phase.FETCHING_LLAMA_SERVER, f"unpacking {_name(choice)}")
        executable = self._paths.engine(choice.accelerator) / choice.executable
        engine = Engine(executable, await self._unpack(files, choice), choice.build)
        record = EngineRecord(
            url=printable_url(choice.artefact.url),
            sha256=choice.artefact.sha256,
            size=files[0].stat().st_size,
            executable=str(executable.relative_to(self._paths.home)),
            version=engine.version,
            installed_at=now(),
        )
        installed = self._context.audit.installed
        if choice.accelerator == "cpu":
            installed.llama_server = record
        else:
            installed.accelerators[choice.accelerator] = record
        self._context.audit.save()
        for file in files:
            file.unlink()
        _log.info("engine installed", version=engine.version, sha256=choice.artefact.sha256, accelerator=choice.accelerator)
        return engine

    async def _download(self, choice: EngineChoice, artefact: Artefact) -> Path:
        """Download one file of an engine, unless an earlier installation has left it."""
        file = self._download_path(choice, artefact)
        # A verified archive that does not work is not downloaded again at every try.
        whole = file.is_file() and artefact.size in {None, file.stat().st_size}
        if not (whole and await sha256_of(file) == artefact.sha256):
            what = _name(choice) if artefact is choice.artefact else f"the libraries of {_name(choice)}"
            await self._context.download(artefact, file, Phase.FETCHING_LLAMA_SERVER, what)
        return file

    async def _look(self, choice: EngineChoice) -> Engine | None:
        folder = self._paths.engine(choice.accelerator)
        executable, marker = folder / choice.executable, folder / self._paths.llama_cpp_marker.name
        try:
            marked = read_regular(marker, limit=MAX_RECORD_BYTES).strip() == choice.build.encode()
        except OSError:
            marked = False
        if not (marked and archive.is_executable(executable)):
            return None
        try:
            return Engine(executable, await programs.engine_version(executable), choice.build)
        except BootstrapError as error:  # a library beside the program may be gone, which neither marker nor path show
            _log.warning("the engine in place does not run and is installed anew", problem=error.message)
            return None

    async def _look_at_own(self) -> Engine:
        own = self._context.settings.llama_server
        assert own is not None
        info = own.stat()
        build = f"{own} {info.st_size} {info.st_mtime_ns}"
        try:
            return Engine(own, await programs.engine_version(own, timeout=_OWN_VERSION_TIMEOUT), build)
        except BootstrapError as error:
            _log.warning("the engine does not tell its version", problem=error.message)
            return Engine(own, "", build)

    def _download_path(self, choice: EngineChoice, artefact: Artefact) -> Path:
        # The name decides when an abandoned download is removed; see `remove_leftovers`.
        kind = "llama-server" if choice.accelerator == "cpu" else "accelerator"
        return self._paths.cache / f"{kind}-{artefact.sha256[:16]}.download"

    def _places(self, accelerator: str) -> tuple[Path, Path, Path]:
        """Return the folders of an engine that is being unpacked, of the installed one, and of its predecessor."""
        place = self._paths.engine(accelerator)
        return place.with_name(f".{place.name}.new"), place, place.with_name(f".{place.name}.old")

    async def _unpack(self, files: Sequence[Path], choice: EngineChoice) -> str:
        """Install an engine if it runs, and return its version."""
        fresh, place, retired = self._places(choice.accelerator)
        file, *libraries = files
        executable = fresh / choice.executable
        try:
            if choice.is_archive:
                await run_in_thread(lambda: archive.extract(file, fresh))
            else:
                await run_in_thread(lambda: archive.place_program(file, fresh, choice.executable))
            archive.check_executable(fresh, choice.executable)
            for library in libraries:
                await run_in_thread(partial(archive.add_libraries, library, executable.parent))
            version = await programs.engine_version(executable)
            # The marker comes last, so that a folder with a marker works.
            write_atomically(fresh / self._paths.llama_cpp_marker.name, f"{choice.build}\n".encode())
            await run_in_thread(lambda: archive.swap_in(fresh, place, retired))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return version


def _name(choice: EngineChoice) -> str:
    return "llama-server" if choice.accelerator == "cpu" else f"llama-server for {choice.accelerator}"
