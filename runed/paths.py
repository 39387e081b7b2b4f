"""The paths under `RUNED_HOME`, and the short alias of a socket whose path is too long for the kernel."""

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
    """The paths of one home. No file is touched.

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
        """The user's configuration. The file is optional."""
        return self.home / "config.json"

    @property
    def daemon_lock(self) -> Path:
        """The lock that a daemon holds for its whole life."""
        return self.home / "daemon.lock"

    @property
    def daemon_record(self) -> Path:
        """The record of the daemon that serves: pid, start time, version and socket."""
        return self.home / "daemon.json"

    @property
    def engine_record(self) -> Path:
        """The pid and start time of the running `llama-server`, so that an orphan can be ended."""
        return self.home / "run" / "engine.json"

    @property
    def engine_quirks(self) -> Path:
        """The quirks of the engine on this machine, for example that it needs `--no-repack`."""
        return self.home / "cache" / "engine-quirks.json"

    @property
    def tuning(self) -> Path:
        """The measurements of `runed bench --tune` on this machine."""
        return self.home / "cache" / "tuning.json"

    @property
    def vector_cache(self) -> Path:
        """The vectors kept on disk (`RUNED_CACHE=disk`)."""
        return self.home / "cache" / "vectors.sqlite"

    @property
    def centroids(self) -> Path:
        """The installed centroid set."""
        return self.home / "cache" / "centroids.bin"

    @property
    def cache_secret(self) -> Path:
        """The secret of `vector_cache`. Without it, nobody can check whether a guessed text is in the cache."""
        return self.home / "cache.secret"

    @property
    def http_token(self) -> Path:
        """The token that each request over the loopback port (`RUNED_HTTP`) carries."""
        return self.home / "http.token"

    @property
    def spawn_lock(self) -> Path:
        """The lock that a client holds while it starts a daemon."""
        return self.home / "spawn.lock"

    @property
    def install_lock(self) -> Path:
        """The lock that a process holds while it installs engine or model."""
        return self.home / "install.lock"

    @property
    def installed(self) -> Path:
        """The record of the installed files, their origins and their hashes."""
        return self.home / "installed.json"

    @property
    def bin(self) -> Path:
        """The directory of the `runed` launcher and the engine."""
        return self.home / "bin"

    @property
    def llama_cpp(self) -> Path:
        """The directory of the extracted engine."""
        return self.bin / "llama-cpp"

    @property
    def llama_cpp_marker(self) -> Path:
        """The file with the SHA-256 of the archive that `llama_cpp` was extracted from."""
        return self.llama_cpp / ".llama_server.sha256"

    @property
    def models(self) -> Path:
        """The directory of the models, each a `<variant>.gguf`."""
        return self.home / "models"

    @property
    def cache(self) -> Path:
        """The directory of files that can be fetched or computed again."""
        return self.home / "cache"

    @property
    def logs(self) -> Path:
        """The directory of the logs."""
        return self.home / "logs"

    @property
    def daemon_log(self) -> Path:
        """The log of a daemon that a client started."""
        return self.logs / "daemon.log"

    @property
    def events_log(self) -> Path:
        """The same log without the lines about single calls."""
        return self.logs / "events.log"

    @property
    def engine_log(self) -> Path:
        """The log of the standard output and error of `llama-server`."""
        return self.logs / "llama-server.log"

    @property
    def licenses(self) -> Path:
        """The directory of the licences of engine and model."""
        return self.home / "licenses"

    def model(self, variant: str) -> Path:
        """Return the path of a model; `variant` is a name of the manifest, which was checked to be a plain file name."""
        return self.models / f"{variant}.gguf"


def short_socket_path(path: Path) -> Path:
    """Return the path of a socket, or its alias if the path is too long. Daemon and clients agree on the alias.

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

    The mode of a directory of this user becomes 0700: a user who can enter it can talk to the sockets in it.

    Args:
        path: The directory. Missing parents are made, too.

    Raises:
        ForeignPathError: The path is not a directory, or belongs to another user.
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
    """Refuse an alias directory that another user made in the world-writable `/tmp`, for example a link.

    Its owner could listen there in the daemon's place and read every text. A missing directory is fine: nobody listens there.

    Args:
        socket: The path of a socket from `Paths`.

    Raises:
        ForeignPathError: The socket is in the alias directory, and that is no directory of this user with mode 0700.
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
    """Make and check the directory of a socket. An alias directory is checked more strictly.

    Args:
        socket: The path of a socket from `Paths`.

    Raises:
        ForeignPathError: See `ensure_private_dir` and `check_socket_dir`.
    """
    if socket.parent == _alias_dir():
        with contextlib.suppress(FileExistsError):
            socket.parent.mkdir(mode=0o700)
        check_socket_dir(socket)
    else:
        ensure_private_dir(socket.parent)
