"""Records for the next installation: `installed.json`, which is also for people, and the hashes of verified files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from runed.bootstrap.disk import sha256_of
from runed.bootstrap.manifest import manifest_source
from runed.errors import ModelFileError
from runed.files import read_record, run_in_thread, write_atomically
from runed.log import get_logger
from runed.onnx_files import files_of, is_onnx, model_folder
from runed.paths import Paths
from runed.settings import Settings
from runed.version import __version__

_log = get_logger(__name__)


def now() -> str:
    """Return the time for a record: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class EngineRecord(msgspec.Struct, frozen=True):
    """An engine: URL without secrets, hash and size of the download; path under the home and version of the program."""

    url: str
    sha256: str
    size: int
    executable: str
    version: str
    installed_at: str


class Derivation(msgspec.Struct, frozen=True):
    """The way in which a model was derived: variant and hash of the source, quantization, and version of the engine."""

    variant: str
    sha256: str
    type: str
    engine_version: str


class ModelRecord(msgspec.Struct, frozen=True):
    """A model: URL of the download without secrets; hash and size of the file, which may be derived from that download."""

    url: str
    sha256: str
    size: int
    installed_at: str
    derived_from: Derivation | None = None


class Installed(msgspec.Struct, omit_defaults=True):
    """The document: the engine, unless the user brings one, those for accelerators by name, and the models by variant."""

    version: int = 1
    runed_version: str = ""
    updated_at: str = ""
    manifest: str = ""
    llama_server: EngineRecord | None = None
    accelerators: dict[str, EngineRecord] = msgspec.field(default_factory=dict)
    models: dict[str, ModelRecord] = msgspec.field(default_factory=dict)


class Audit:
    """The file `installed.json`.

    Args:
        path: The file. A missing or damaged file counts as empty, since everything in it can be found again.
        settings: The settings, which tell the place of the manifest.

    Attributes:
        installed: The document; `save` after a change.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self.installed = self._load()

    def reload(self) -> bool:
        """Read the file again. Return whether another process changed it."""
        before, self.installed = self.installed, self._load()
        return self.installed != before

    def save(self) -> None:
        """Write the file in one step."""
        installed = self.installed
        installed.version, installed.runed_version = 1, __version__
        installed.updated_at, installed.manifest = now(), str(manifest_source(self._settings))
        write_atomically(self._path, msgspec.json.format(msgspec.json.encode(installed), indent=2) + b"\n")

    def _load(self) -> Installed:
        installed = read_record(self._path, Installed)
        if installed is None and os.path.lexists(self._path):
            _log.warning("installed.json cannot be read and is made anew")
        return installed or Installed()


class _Verified(msgspec.Struct, frozen=True):
    """The state of a file when its hash was computed."""

    size: int
    mtime_ns: int
    inode: int
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

    @classmethod
    def of(cls, path: Path, sha256: str) -> _Verified:
        info = path.stat()
        return cls(info.st_size, info.st_mtime_ns, info.st_ino, sha256)


def _sha256_of_all(path: Path, hashes: Mapping[Path, str]) -> str:
    """Return one hash for the files of a model in the format ONNX."""
    folder = model_folder(path)
    lines = (f"{sha256}  {file.relative_to(folder).as_posix()}\n" for file, sha256 in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class VerifiedFiles:
    """The hashes of verified files. Without them, every start of the daemon would hash the model for seconds.

    A hash is valid while size, time of change and inode of its file stay the same.

    Args:
        paths: The paths; the cache directory must exist.
        announce: Called with a sentence before a hash is computed.
    """

    def __init__(self, paths: Paths, *, announce: Callable[[str], None]) -> None:
        self._file = paths.cache / "verified.json"
        self._announce = announce

    async def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, remembered or computed."""
        known = self._load().get(str(path))
        if known is not None and known == _Verified.of(path, known.sha256):
            return known.sha256
        self._announce(f"verifying {path.name}")
        before = _Verified.of(path, "")
        sha256 = await sha256_of(path)
        # The hash of a file that changed during the reading is not kept.
        if before == _Verified.of(path, ""):
            self.remember(path, sha256)
        return sha256

    async def sha256_of_model(self, path: Path) -> str:
        """Return the SHA-256 of a model, remembered or computed.

        That of an ONNX file is one for all its files, as `sha256sum FILE... | sha256sum` computes it in the model's folder.

        Raises:
            ModelFileError: A file of a model in the format ONNX is missing or broken.
        """
        if not is_onnx(path):
            return await self.sha256(path)
        files = await run_in_thread(lambda: files_of(path))
        return _sha256_of_all(path, {file: await self.sha256(file) for file in files})

    def recall(self, path: Path) -> str:
        """Return the SHA-256 that a model had when it was last hashed, or "". A GGUF may be gone."""
        entries = self._load()
        try:
            files = files_of(path) if is_onnx(path) else [path]
        except ModelFileError:
            return ""
        known = {file: entry.sha256 for file in files if (entry := entries.get(str(file)))}
        if len(known) < len(files):
            return ""
        return _sha256_of_all(path, known) if is_onnx(path) else known[path]

    def remember(self, path: Path, sha256: str) -> None:
        """Keep the SHA-256 of a file, and drop those of files that are gone."""
        entries = {name: entry for name, entry in self._load().items() if os.path.exists(name)}  # noqa: PTH110 # Path.exists raises on a damaged name
        entries[str(path)] = _Verified.of(path, sha256)
        write_atomically(self._file, msgspec.json.encode(entries))

    def _load(self) -> dict[str, _Verified]:
        return read_record(self._file, dict[str, _Verified]) or {}
