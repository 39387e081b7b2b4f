"""Every path under `RUNED_HOME`, and the short alias of a socket whose path is too long for the kernel."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runed.errors import ForeignPathError

MAX_SOCKET_PATH = 103
"""The longest socket path in bytes: macOS holds 104 with the closing NUL, Linux 108 (`sun_path` of `sockaddr_un`)."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one home; constructing it touches nothing.

    Attributes:
        home: The directory, absolute.
    """

    home: Path

    @property
    def socket(self) -> Path:
        """The public socket, or its short alias."""
        return short_socket_path(self.home / "embedding.sock")

    @property
    def engine_socket(self) -> Path:
        """The private socket between daemon and `llama-server`, or its short alias."""
        return short_socket_path(self.home / "run" / "engine.sock")

    @property
    def config(self) -> Path:
        """The user's configuration, optional."""
        return self.home / "config.json"

    @property
    def daemon_lock(self) -> Path:
        """Locked by the daemon for as long as it lives."""
        return self.home / "daemon.lock"

    @property
    def daemon_record(self) -> Path:
        """Who serves: pid, start time, version and socket."""
        return self.home / "daemon.json"

    @property
    def engine_record(self) -> Path:
        """The running `llama-server`: pid and start time, so that an orphan can be ended."""
        return self.home / "run" / "engine.json"

    @property
    def engine_quirks(self) -> Path:
        """What was learned about the engine on this machine, such as that it needs `--no-repack`."""
        return self.home / "cache" / "engine-quirks.json"

    @property
    def tuning(self) -> Path:
        """What `runed bench --tune` measured of the engine on this machine."""
        return self.home / "cache" / "tuning.json"

    @property
    def vector_cache(self) -> Path:
        """The vectors kept on disk (`RUNED_CACHE=disk`)."""
        return self.home / "cache" / "vectors.sqlite"

    @property
    def centroids(self) -> Path:
        """The centroid set that is installed."""
        return self.home / "cache" / "centroids.bin"

    @property
    def cache_secret(self) -> Path:
        """The secret that keeps texts from being guessed by what is in `vector_cache`."""
        return self.home / "cache.secret"

    @property
    def http_token(self) -> Path:
        """The token that requests over the loopback port (`RUNED_HTTP`) carry."""
        return self.home / "http.token"

    @property
    def spawn_lock(self) -> Path:
        """Locked while a client starts a daemon."""
        return self.home / "spawn.lock"

    @property
    def install_lock(self) -> Path:
        """Locked while engine or model are being installed."""
        return self.home / "install.lock"

    @property
    def installed(self) -> Path:
        """What is installed, from where and with which hashes."""
        return self.home / "installed.json"

    @property
    def bin(self) -> Path:
        """Holds the `runed` launcher and the engine."""
        return self.home / "bin"

    @property
    def llama_cpp(self) -> Path:
        """The extracted engine archive."""
        return self.bin / "llama-cpp"

    @property
    def llama_cpp_marker(self) -> Path:
        """The SHA-256 of the archive that `llama_cpp` was extracted from."""
        return self.llama_cpp / ".llama_server.sha256"

    @property
    def models(self) -> Path:
        """The models, one `<variant>.gguf` each."""
        return self.home / "models"

    @property
    def cache(self) -> Path:
        """What can be fetched or computed again."""
        return self.home / "cache"

    @property
    def logs(self) -> Path:
        """The logs."""
        return self.home / "logs"

    @property
    def daemon_log(self) -> Path:
        """The log of a daemon that a client started."""
        return self.logs / "daemon.log"

    @property
    def engine_log(self) -> Path:
        """What `llama-server` wrote to its standard output and error."""
        return self.logs / "llama-server.log"

    @property
    def licenses(self) -> Path:
        """The licences of engine and model."""
        return self.home / "licenses"

    def model(self, variant: str) -> Path:
        """Give the path of a model; `variant` is a name of the manifest, checked there to be a plain file name."""
        return self.models / f"{variant}.gguf"


def short_socket_path(path: Path) -> Path:
    """Give the path itself, or where it is too long, the alias that daemon and clients agree on.

    Args:
        path: The absolute path of a socket.

    Returns:
        `path`, or `/tmp/runed-<uid>/runed-<first 32 hex digits of sha256(path)>.sock`.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return _alias_dir() / f"runed-{digest}.sock"


def _alias_dir() -> Path:
    return Path(f"/tmp/runed-{os.getuid()}")  # noqa: S108 # guarded by ensure_socket_dir and check_socket_dir


def ensure_private_dir(path: Path) -> None:
    """Make a directory that only this user can enter, or check that it is one.

    A directory of ours with a wider mode is narrowed to 0700, since whoever can enter it can talk to the sockets in it.

    Args:
        path: The directory; missing parents are made too.

    Raises:
        ForeignPathError: The path is not a directory, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except FileExistsError:
        raise ForeignPathError(f"{path} is not a directory; move it away or set RUNED_HOME to another place") from None
    except OSError as error:
        raise ForeignPathError(f"{path} cannot be made or read: {error.strerror}; set RUNED_HOME to another place") from None
    if info.st_uid != os.getuid():
        raise ForeignPathError(f"{path} belongs to user id {info.st_uid}, not to you; set RUNED_HOME to a place of your own")
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(0o700)


def check_socket_dir(socket: Path) -> None:
    """Refuse an alias directory that somebody else laid out in the world-writable `/tmp`, such as a link to elsewhere.

    Whoever owns it could listen there in the daemon's place and read every text. A missing directory is fine: nobody listens.

    Args:
        socket: The path of a socket, as `Paths` gives it.

    Raises:
        ForeignPathError: The socket's directory is the alias's, but a link, not a directory, not ours, or open to others.
    """
    path = socket.parent
    if path != _alias_dir():
        return
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise ForeignPathError(
            f"{path} is not a directory of yours with mode 0700, so a socket in it cannot be trusted; "
            "remove it, or set RUNED_HOME to a shorter path"
        )


def ensure_socket_dir(socket: Path) -> None:
    """Make and check the directory of a socket, as strictly as its place demands.

    Args:
        socket: The path of a socket, as `Paths` gives it.

    Raises:
        ForeignPathError: See `ensure_private_dir` and `check_socket_dir`.
    """
    if socket.parent == _alias_dir():
        with contextlib.suppress(FileExistsError):
            socket.parent.mkdir(mode=0o700)
        check_socket_dir(socket)
    else:
        ensure_private_dir(socket.parent)
