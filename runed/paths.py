"""The paths under `RUNED_HOME`, and the short alias of a socket whose path is too long for the kernel."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runed.errors import ForeignPathError
from runed.trust import check_contents, is_open_to_writers, is_trusted, mode_of, resolve_trusted

MAX_SOCKET_PATH = 103
"""The longest socket path in bytes: macOS holds 104 with the closing NUL, Linux 108 (`sun_path` of `sockaddr_un`)."""

_MARKS = frozenset(
    "cache.secret config.lock daemon.json daemon.lock embedding.sock http.token "  # noqa: SIM905 # shorter
    "install.lock installed.json spawn.lock stopped.json".split()
)
"""Files that only runed makes. A directory that has one of them is a home."""

_PRIVATE_DIRS = frozenset({"bin", "cache", "licenses", "logs", "run"})
"""Names of the directories of a home that no other user may write to. Each may be a link to another place."""

_NAMES = _MARKS | _PRIVATE_DIRS | {"config.json", "models", "service.env"}
"""Names of all entries of a home."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one home. No file is touched.

    Attributes:
        home: The directory, absolute.
        engine_name: The name of the model whose engine and centroids are meant; "" for the default model.
    """

    home: Path
    engine_name: str = ""

    @property
    def socket(self) -> Path:
        """The public socket, or its short alias."""
        return short_socket_path(self.home / "embedding.sock")

    @property
    def engine_socket(self) -> Path:
        """The private socket between daemon and engine, or its short alias."""
        return short_socket_path(self.home / "run" / f"{self._of_engine('engine')}.sock")

    @property
    def config(self) -> Path:
        """The user's configuration. The file is optional."""
        return self.home / "config.json"

    @property
    def config_lock(self) -> Path:
        """The lock that a command holds while it changes the configuration."""
        return self.home / "config.lock"

    @property
    def daemon_lock(self) -> Path:
        """The lock that a daemon holds for its whole life."""
        return self.home / "daemon.lock"

    @property
    def daemon_record(self) -> Path:
        """The record of the daemon that serves: pid, start time, version and socket."""
        return self.home / "daemon.json"

    @property
    def hold(self) -> Path:
        """The mark of `runed stop --for`: until when nobody starts the daemon."""
        return self.home / "stopped.json"

    @property
    def engine_record(self) -> Path:
        """The pid and start time of the running engine, so that an orphan can be ended."""
        return self.home / "run" / f"{self._of_engine('engine')}.json"

    @property
    def engine_records(self) -> list[Path]:
        """The records of the engines of all models but the default one, as far as they exist."""
        return sorted((self.home / "run").glob("engine-*.json"))

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
        return self.home / "cache" / f"{self._of_engine('centroids')}.bin"

    @property
    def cache_secret(self) -> Path:
        """The secret of `vector_cache`. Without it, nobody can check whether a guessed text is in the cache."""
        return self.home / "cache.secret"

    @property
    def http_token(self) -> Path:
        """The token that each request over the loopback port (`RUNED_HTTP`) carries."""
        return self.home / "http.token"

    @property
    def service_environment(self) -> Path:
        """The variables of the daemon that a service manager starts."""
        return self.home / "service.env"

    @property
    def page_link(self) -> Path:
        """A page that leads a browser to the last link of `runed open`, so that no list of processes shows the link."""
        return self.home / "run" / "open.html"

    @property
    def replaced(self) -> Path:
        """The settings of the daemons that were replaced, one after the other, since they could not get their models."""
        return self.home / "run" / "replaced.json"

    @property
    def spawn_lock(self) -> Path:
        """The lock that a client holds while it starts a daemon."""
        return self.home / "spawn.lock"

    @property
    def install_lock(self) -> Path:
        """The lock that a process holds while it installs engine or model."""
        return self.home / "install.lock"

    @property
    def install_progress(self) -> Path:
        """How far the process is that holds the lock, for others that wait for it."""
        return self.cache / "installing.json"

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

    def engine(self, accelerator: str) -> Path:
        """Return the directory of the extracted engine for an accelerator; `llama_cpp` is that for "cpu"."""
        return self.llama_cpp if accelerator == "cpu" else self.bin / f"llama-cpp-{accelerator}"

    @property
    def device_failures(self) -> Path:
        """The devices on which an engine failed on this machine."""
        return self.home / "cache" / "device-failures.json"

    @property
    def device_choice(self) -> Path:
        """The devices that were the fastest on this machine, by model."""
        return self.home / "cache" / "device-choice.json"

    @property
    def engine_comparisons(self) -> Path:
        """The results of comparing `llama-server` and ONNX Runtime on this machine, by model."""
        return self.home / "cache" / "engine-comparisons.json"

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
        return self.logs / f"{self._of_engine('llama-server')}.log"

    @property
    def onnx_log(self) -> Path:
        """The log of the standard output and error of the worker with ONNX Runtime."""
        return self.logs / f"{self._of_engine('onnx-runtime')}.log"

    @property
    def licenses(self) -> Path:
        """The directory of the licences of engine and model."""
        return self.home / "licenses"

    def _of_engine(self, name: str) -> str:
        return f"{name}-{self.engine_name}" if self.engine_name else name

    def remote_space(self, name: str) -> Path:
        """Return the record of the space of a model whose engine is on another machine."""
        return self.home / "cache" / f"remote-{name}.json"

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
    import hashlib  # noqa: PLC0415 # 3 ms that a home with a short path does not spend

    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return _alias_dir() / f"runed-{digest}.sock"


def _alias_dir() -> Path:
    return Path(f"/tmp/runed-{os.getuid()}")  # noqa: S108 # guarded by ensure_socket_dir and check_socket_dir


def check_home(home: Path, *, trust_parents: bool = False) -> None:
    """Check that no other user has a hand in a home, before anything of it is read, run, connected to or signalled.

    A missing home is fine. A link to a home is, too, if it belongs to this user or root.

    Args:
        home: The home, absolute.
        trust_parents: Whether to trust everybody who can write to the directories above it, or owns them.

    Raises:
        ForeignPathError: The home is not a directory, or belongs to another user, or others can write to it or replace it; or a
            file of runed in it belongs to another user.
    """
    real = resolve_trusted(home, trust_parents=trust_parents)
    try:
        info = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(info.st_mode):
        raise ForeignPathError(f"{home} is not a directory; move it away or set RUNED_HOME to another place")
    if info.st_uid != os.geteuid():
        sudo = ", or use `sudo -H`" if os.geteuid() == 0 else ""
        raise ForeignPathError(
            f"{home} belongs to user id {info.st_uid}, and you are user id {os.geteuid()}; "
            f"set RUNED_HOME to a place of your own{sudo}"
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Other users need a sticky directory, such as /tmp.
        narrow = "" if info.st_mode & stat.S_ISVTX else f", or check what is in it and run `chmod 700 {home}`"
        raise ForeignPathError(
            f"others can write to {home} (mode {mode_of(info)}), so nothing of it is used; "
            f"set RUNED_HOME to a directory of its own{narrow}"
        )
    check_contents(real, _NAMES)


def ensure_home(home: Path, *, trust_parents: bool = False) -> None:
    """Make the home, which only this user can enter, or check that it can be one.

    Only a home that runed made, and an empty directory, get the mode 0700.

    Args:
        home: The home, absolute. Missing parents are made, too.
        trust_parents: As for `check_home`.

    Raises:
        ForeignPathError: See `check_home`; or others can enter the directory, and it holds files that are not runed's; or a
            directory in it is a link to a place that others can replace.
    """
    check_home(home, trust_parents=trust_parents)
    _make_dir(home)
    check_home(home, trust_parents=trust_parents)  # another user may have made it meanwhile
    for name in _PRIVATE_DIRS:
        resolve_trusted(home / name, trust_parents=trust_parents)
    info = home.stat()
    if not stat.S_IMODE(info.st_mode) & 0o077:
        return
    names = {entry.name for entry in os.scandir(home)}
    if home.is_symlink() or not (names <= {"config.json"} or names & _MARKS):
        raise ForeignPathError(
            f"others can enter {home} (mode {mode_of(info)}), and it was not made by runed; "
            f"set RUNED_HOME to a directory of its own, such as {home / 'runed'}"
        )
    home.chmod(0o700)


def ensure_private_dir(path: Path, *, shared: bool = False) -> None:
    """Make a directory of a home, or check that it is one. The mode of an existing one stays: the home keeps others out.

    Args:
        path: The directory. It may be a link to another place, which is left alone. `ensure_home` has checked the way to it.
        shared: Whether others may own and write what is behind a link.

    Raises:
        ForeignPathError: The path is not a directory; or it or an entry of it belongs to another user; or it is a link to a
            place that others can write to.
    """
    _make_dir(path)
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        raise ForeignPathError(f"{path} is not a directory; move it away or set RUNED_HOME to another place")
    if shared:
        return
    if not is_trusted(info.st_uid):
        raise ForeignPathError(
            f"{path} belongs to user id {info.st_uid}, and you are user id {os.geteuid()}; "
            "set RUNED_HOME to a place of your own"
        )
    if path.is_symlink() and is_open_to_writers(info):
        raise ForeignPathError(
            f"{path} leads to {path.resolve()}, and others can write there (mode {mode_of(info)}); "
            "let it lead to a directory of your own"
        )
    check_contents(path)


def _make_dir(path: Path) -> None:
    """Make a private directory unless there is one."""
    try:
        # Not `parents`, which makes parents that others can write to where the umask is 000.
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir(mode=0o755)
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # a umask such as 0177 takes away the owner's own right to enter
    except FileExistsError:
        if path.is_dir():
            return
        what = f"leads to {path.readlink()}, where there is no directory" if path.is_symlink() else "is not a directory"
        raise ForeignPathError(f"{path} {what}; move it away or set RUNED_HOME to another place") from None
    except OSError as error:
        raise ForeignPathError(f"{path} cannot be made or read: {error.strerror}; set RUNED_HOME to another place") from None


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
