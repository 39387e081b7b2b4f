"""What is installed: `installed.json`, the audit for people and for the next bootstrap; and which files were verified when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from runed.bootstrap.disk import sha256_of
from runed.files import write_atomically
from runed.log import get_logger
from runed.paths import Paths
from runed.version import __version__

_log = get_logger(__name__)


def now() -> str:
    """Give the time as an audit has it: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class EngineRecord(msgspec.Struct, frozen=True):
    """The installed engine.

    Attributes:
        url: Where it was downloaded, without secrets.
        sha256: The hash of what was downloaded.
        size: Its size in bytes.
        executable: The program's path under the home.
        version: What it calls itself.
        installed_at: When.
    """

    url: str
    sha256: str
    size: int
    executable: str
    version: str
    installed_at: str


class Derivation(msgspec.Struct, frozen=True):
    """How a model was made.

    Attributes:
        variant: The variant it was made from.
        sha256: The hash of that file.
        type: What `llama-quantize` was asked for.
        engine_version: The version of the engine that `llama-quantize` belongs to.
    """

    variant: str
    sha256: str
    type: str
    engine_version: str


class ModelRecord(msgspec.Struct, frozen=True):
    """An installed model.

    Attributes:
        url: Where it, or what it was made from, was downloaded, without secrets.
        sha256: The hash of the file.
        size: Its size in bytes.
        installed_at: When.
        derived_from: How it was made, or None for a download.
    """

    url: str
    sha256: str
    size: int
    installed_at: str
    derived_from: Derivation | None = None


class Installed(msgspec.Struct, omit_defaults=True):
    """The document `installed.json`.

    Attributes:
        version: The version of the format, 1.
        runed_version: The version of runed that wrote it.
        updated_at: When it was written.
        manifest: Where the manifest was that was followed last.
        llama_server: The engine, or None if the user's own is used.
        models: The models by variant.
    """

    version: int = 1
    runed_version: str = ""
    updated_at: str = ""
    manifest: str = ""
    llama_server: EngineRecord | None = None
    models: dict[str, ModelRecord] = msgspec.field(default_factory=dict)


def load_installed(paths: Paths) -> Installed:
    """Read `installed.json`; one that is missing or damaged is as good as empty, as all it says can be found out again."""
    try:
        return msgspec.json.decode(paths.installed.read_bytes(), type=Installed)
    except FileNotFoundError:
        return Installed()
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("installed.json cannot be read and is made anew", problem=str(error))
        return Installed()


def save_installed(paths: Paths, installed: Installed) -> None:
    """Write `installed.json` in one step."""
    installed.version = 1
    installed.runed_version = __version__
    installed.updated_at = now()
    write_atomically(paths.installed, msgspec.json.format(msgspec.json.encode(installed), indent=2) + b"\n")


class _Verified(msgspec.Struct, frozen=True):
    """A file as it was when its hash was computed."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str) -> _Verified:
        info = path.stat()
        return cls(info.st_size, info.st_mtime_ns, info.st_ino, sha256)


class VerifiedFiles:
    """The hashes of files that need not be computed again while size, time of change and inode are the same.

    They are kept in `cache/verified.json`: hashing a model takes seconds, which every start of the daemon would take longer.

    Args:
        paths: The paths; the cache directory must exist.
        announce: Told before a hash is computed, which may take seconds.
    """

    def __init__(self, paths: Paths, *, announce: Callable[[str], None]) -> None:
        self._file = paths.cache / "verified.json"
        self._announce = announce

    async def sha256(self, path: Path) -> str:
        """Give the SHA-256 of a file, from memory if the file is the same as when it was computed."""
        known = self._load().get(str(path))
        if known is not None and known == _Verified.of(path, known.sha256):
            return known.sha256
        self._announce(f"verifying {path.name}")
        before = _Verified.of(path, "")
        sha256 = await sha256_of(path)
        # A file that changed under the reader is not remembered.
        if before == _Verified.of(path, ""):
            self.remember(path, sha256)
        return sha256

    def remember(self, path: Path, sha256: str) -> None:
        """Note the SHA-256 of a file that was just computed while it was written; files that are gone are forgotten."""
        entries = {name: entry for name, entry in self._load().items() if Path(name).exists()}
        entries[str(path)] = _Verified.of(path, sha256)
        write_atomically(self._file, msgspec.json.encode(entries))

    def _load(self) -> dict[str, _Verified]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Verified])
        except (OSError, msgspec.DecodeError):
            return {}
