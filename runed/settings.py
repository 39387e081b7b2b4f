"""The settings of runed, and the only place that reads the environment.

The environment beats `config.json`, which beats the default. A value that cannot be used is a `SettingsError` of one line that
names the variable or key, its value and what is accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import durationpy
import msgspec

from runed.errors import SettingsError

DEFAULT_CTX_SIZE = 2048
DEFAULT_IDLE_TIMEOUT = "10m"
DEFAULT_PROFILE = "balanced"
DEFAULT_QUEUE_TEXTS = 16_384
DEFAULT_QUEUE_BYTES = "64MiB"
DEFAULT_CACHE = "memory"
DEFAULT_CACHE_SIZE = "64MiB"
DEFAULT_DISK_CACHE_SIZE = "1GiB"

MIN_CTX_SIZE = 64
MAX_CTX_SIZE = 131_072
"""Above what any embedding model reads; the model's own context is the limit that counts (see `backend`)."""

PROFILES = ("memory", "balanced", "throughput")
CACHES = ("memory", "disk")

MIN_QUEUE_TEXTS = 64
MAX_QUEUE_TEXTS = 1_000_000
MIN_QUEUE_BYTES = 1024 * 1024
"""A stream queues up to 64 texts at once, and one text may be as large as a request."""

MIN_DISK_CACHE_BYTES = 16 * 1024 * 1024
"""Half of it is for SQLite's log."""

_SIZE = re.compile(r"([0-9]{1,15}) ?(?:([KMGT]?)i?B?)", re.IGNORECASE)
_SIZE_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
"""Powers of 1024, with and without the "i": nobody means anything else by the size of a cache."""

_LOOPBACK = re.compile(r"(?:(127\.0\.0\.1)|\[(::1)\]):([0-9]{1,5})")
_MAX_PORT = 65_535

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_BASE_ENVIRONMENT = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")
"""What any program needs to find its files and to print text."""

_PATH_VARIABLES = ("RUNED_HOME", "RUNED_CONFIG", "RUNED_LLAMA_SERVER", "RUNED_MODEL", "RUNED_MANIFEST")
"""What names a file; `RUNED_MANIFEST` may also be a URL."""

_NETWORK_ENVIRONMENT = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""What a download needs behind a proxy or a private certificate authority; httpx reads these."""

_ENGINE_ENVIRONMENT = (
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GGML_METAL_PATH_RESOURCES"),
)
"""What an engine of the user's own may need to load its libraries and to pick its device."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The document `config.json`; unknown keys are ignored.

    Attributes:
        version: The version of the format, 1.
        llama_server: The path of a `llama-server` to use instead of the installed one.
        model: The path of a GGUF to use instead of an installed one.
        runed_binary: The path of the `runed` that clients start.
        idle_timeout: A Go duration such as "10m"; "0" never suspends.
        model_variant: The name of a model in the manifest.
        keep_source: Whether to keep the file that a derived model was made from.
        profile: "memory", "balanced" or "throughput".
        queue_texts: How many texts may wait.
        queue_bytes: How many bytes of text may wait, such as "64MiB".
        cache: Where vectors are kept: "memory", or "disk" for both.
        cache_size: The size of the cache in memory, such as "64MiB"; "0" for none.
        disk_cache_size: The size of the cache on disk, such as "1GiB".
        http: Where to serve the OpenAI API besides the socket, such as "127.0.0.1:8321".
    """

    version: int = 1
    llama_server: str | None = None
    model: str | None = None
    runed_binary: str | None = None
    idle_timeout: str | None = None
    model_variant: str | None = None
    keep_source: bool | None = None
    profile: str | None = None
    queue_texts: int | None = None
    queue_bytes: str | int | None = None
    cache: str | None = None
    cache_size: str | int | None = None
    disk_cache_size: str | int | None = None
    http: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one daemon or client; all paths are absolute.

    Attributes:
        home: The directory that holds everything of runed (`RUNED_HOME`, default `~/.runed`).
        manifest: The URL or path of a manifest instead of the built-in one (`RUNED_MANIFEST`).
        llama_server: An engine to use as it is (`RUNED_LLAMA_SERVER`).
        model: A GGUF to use as it is (`RUNED_MODEL`).
        model_variant: A model of the manifest instead of its default (`RUNED_MODEL_VARIANT`).
        ctx_size: The engine's context in tokens, clamped to the model's (`RUNED_CTX_SIZE`, default 2048).
        idle_timeout: Seconds without an embedding after which the engine is suspended; 0 never (`RUNED_IDLE_TIMEOUT`, 10m).
        keep_source: Whether to keep the file that a derived model was made from (`RUNED_KEEP_SOURCE`, default no).
        runed_binary: The `runed` that clients start (`runed_binary` of `config.json`).
        profile: How the engine is run (`RUNED_PROFILE`): "memory", "balanced" (the default) or "throughput".
        queue_texts: How many texts may wait (`RUNED_QUEUE_TEXTS`, default 16,384).
        queue_bytes: How many bytes of text may wait (`RUNED_QUEUE_BYTES`, default 64 MiB).
        disk_cache: Whether vectors are kept on disk too (`RUNED_CACHE=disk`).
        cache_bytes: The size of the cache in memory (`RUNED_CACHE_SIZE`, default 64 MiB); 0 for none.
        disk_cache_bytes: The size of the cache on disk (`RUNED_DISK_CACHE_SIZE`, default 1 GiB).
        http: The loopback address and port of the OpenAI API (`RUNED_HTTP`), such as ("127.0.0.1", 8321); None for none.
    """

    home: Path
    manifest: str | None = None
    llama_server: Path | None = None
    model: Path | None = None
    model_variant: str | None = None
    ctx_size: int = DEFAULT_CTX_SIZE
    idle_timeout: float = 600.0
    keep_source: bool = False
    runed_binary: Path | None = None
    profile: str = DEFAULT_PROFILE
    queue_texts: int = DEFAULT_QUEUE_TEXTS
    queue_bytes: int = 64 * 1024 * 1024
    disk_cache: bool = False
    cache_bytes: int = 64 * 1024 * 1024
    disk_cache_bytes: int = 1024 * 1024 * 1024
    http: tuple[str, int] | None = None


def load_settings(*, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        home: The home directory, instead of `RUNED_HOME`.
        environ: The environment, instead of the process's own.

    Returns:
        The settings, complete and checked.

    Raises:
        SettingsError: A value cannot be used, or `config.json` cannot be read.
    """
    env = os.environ if environ is None else environ
    home_path = _absolute(os.fspath(home)) if home is not None else _absolute(_get(env, "RUNED_HOME") or "~/.runed")
    config_path = _absolute(explicit) if (explicit := _get(env, "RUNED_CONFIG")) else home_path / "config.json"
    config = _read_config(config_path, required=explicit is not None)

    def choose(variable: str, key: str, default: str | None = None) -> tuple[str | None, str]:
        """Give the value that wins and how to name its origin in an error."""
        if value := _get(env, variable):
            return value, variable
        if (value := getattr(config, key)) is not None:
            return str(value), f"{key} in {config_path}"
        return default, variable

    def required(variable: str, key: str, default: str) -> tuple[str, str]:
        value, origin = choose(variable, key, default)
        assert value is not None
        return value, origin

    llama_server, _ = choose("RUNED_LLAMA_SERVER", "llama_server")
    model, _ = choose("RUNED_MODEL", "model")
    variant, _ = choose("RUNED_MODEL_VARIANT", "model_variant")
    keep = _get(env, "RUNED_KEEP_SOURCE")
    http, http_origin = choose("RUNED_HTTP", "http")
    return Settings(
        home=home_path,
        manifest=_get(env, "RUNED_MANIFEST"),
        llama_server=_absolute(llama_server) if llama_server else None,
        model=_absolute(model) if model else None,
        model_variant=variant or None,
        ctx_size=_whole_number(
            _get(env, "RUNED_CTX_SIZE") or str(DEFAULT_CTX_SIZE), "RUNED_CTX_SIZE", MIN_CTX_SIZE, MAX_CTX_SIZE, "tokens"
        ),
        idle_timeout=_duration(*required("RUNED_IDLE_TIMEOUT", "idle_timeout", DEFAULT_IDLE_TIMEOUT)),
        keep_source=_boolean(keep, "RUNED_KEEP_SOURCE") if keep else bool(config.keep_source),
        runed_binary=_absolute(config.runed_binary) if config.runed_binary else None,
        profile=_one_of(PROFILES, *required("RUNED_PROFILE", "profile", DEFAULT_PROFILE)),
        queue_texts=_whole_number(
            *required("RUNED_QUEUE_TEXTS", "queue_texts", str(DEFAULT_QUEUE_TEXTS)), MIN_QUEUE_TEXTS, MAX_QUEUE_TEXTS, "texts"
        ),
        queue_bytes=_size(*required("RUNED_QUEUE_BYTES", "queue_bytes", DEFAULT_QUEUE_BYTES), least=MIN_QUEUE_BYTES),
        disk_cache=_one_of(CACHES, *required("RUNED_CACHE", "cache", DEFAULT_CACHE)) == "disk",
        cache_bytes=_size(*required("RUNED_CACHE_SIZE", "cache_size", DEFAULT_CACHE_SIZE), least=1, none=True),
        disk_cache_bytes=_size(
            *required("RUNED_DISK_CACHE_SIZE", "disk_cache_size", DEFAULT_DISK_CACHE_SIZE),
            least=MIN_DISK_CACHE_BYTES,
            none=True,
        ),
        http=_loopback(http, http_origin) if http else None,
    )


def daemon_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment for a daemon that a client starts.

    A daemon outlives the process that happened to start it, so only what it reads is handed on. Relative paths are made
    absolute, since the daemon works in another directory.

    Args:
        environ: The environment to take it from, instead of the process's own.
    """
    env = os.environ if environ is None else environ
    names = {*_BASE_ENVIRONMENT, *_NETWORK_ENVIRONMENT, *_ENGINE_ENVIRONMENT}
    result = {name: value for name, value in env.items() if name in names or name.startswith("RUNED_")}
    for name in _PATH_VARIABLES:
        if (value := result.get(name)) and "://" not in value:
            result[name] = str(_absolute(value))
    return result


def engine_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment for `llama-server`.

    It reads `LLAMA_ARG_*`, `LLAMA_API_KEY`, `AIP_*` and a configuration file under `XDG_CONFIG_HOME` or else `~/.config`
    (facts.md, section 1), any of which would silently change what it computes.

    Args:
        environ: The environment to take it from, instead of the process's own.
    """
    env = os.environ if environ is None else environ
    names = {*_BASE_ENVIRONMENT, *_ENGINE_ENVIRONMENT}
    # libgomp's threads wait for each other by spinning. When others want a processor, too, that wastes whole time slices:
    # beside two busy processes on two cores a short text took 184 ms (90th percentile 1.8 s), without spinning 10 ms (24 ms).
    # A thousand turns, some microseconds, bridge the short waits between two steps: 5 ms instead of 15 for a short text on a
    # quiet machine, 14 instead of 22 beside two busy processes.
    defaults = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    # Without XDG_CONFIG_HOME it reads ~/.config/llama.cpp/config.ini; below /dev/null nothing can be.
    fixed = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": os.devnull}
    return defaults | {name: value for name, value in env.items() if name in names} | fixed


def search_path(environ: Mapping[str, str] | None = None) -> str:
    """Give the `PATH` to look for programs in."""
    env = os.environ if environ is None else environ
    return env.get("PATH", os.defpath)


def debug_enabled(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether commands show a stack trace with an error (`RUNED_DEBUG`)."""
    env = os.environ if environ is None else environ
    return _BOOLEANS.get(env.get("RUNED_DEBUG", "").lower(), False)


def _get(env: Mapping[str, str], name: str) -> str | None:
    """Read a variable; one that is set to nothing counts as not set, as shells make it hard to tell them apart."""
    return env.get(name) or None


def _absolute(path: str) -> Path:
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # a user without an entry in the user database, as in many containers
        raise SettingsError(f"{path}: no home directory is known for ~; set HOME, or RUNED_HOME to a full path") from None
    return Path(os.path.abspath(expanded))  # noqa: PTH100 # resolve() would follow a link the user chose


def _read_config(path: Path, *, required: bool) -> Config:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # a home that is a file is refused where it is used, in better words
        if required:
            raise SettingsError(f"RUNED_CONFIG={path}: there is no such file; create it or unset the variable") from None
        return Config()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    try:
        config = msgspec.json.decode(data, type=Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # msgspec lets a string that is not UTF-8 through as the latter
        raise SettingsError(f"{path}: {error}; accepted is a JSON object as in docs/configuration.md") from None
    if config.version != 1:
        raise SettingsError(f"{path}: version is {config.version}; accepted is 1")
    return config


def _whole_number(value: str, origin: str, least: int, most: int, what: str) -> int:
    # Counted first, since int() refuses thousands of digits by an error of its own.
    if value.isascii() and value.isdigit() and len(value) <= len(str(most)) and least <= int(value) <= most:
        return int(value)
    raise SettingsError(f"{origin}={value!r}: accepted is a whole number of {what} from {least} to {most}")


def _duration(value: str, origin: str) -> float:
    try:
        seconds = durationpy.from_str(value).total_seconds()
    except (durationpy.DurationError, ValueError, OverflowError):
        seconds = -1.0
    if seconds < 0:
        raise SettingsError(f'{origin}={value!r}: accepted is a duration such as "90s", "10m" or "1h30m", or "0" for never')
    return seconds


def _boolean(value: str, origin: str) -> bool:
    if (result := _BOOLEANS.get(value.lower())) is None:
        raise SettingsError(f"{origin}={value!r}: accepted is 1, true, yes, on or 0, false, no, off")
    return result


def _one_of(accepted: tuple[str, ...], value: str, origin: str) -> str:
    if value.lower() not in accepted:
        raise SettingsError(f"{origin}={value!r}: accepted is {', '.join(accepted)}")
    return value.lower()


def _size(value: str, origin: str, *, least: int, none: bool = False) -> int:
    match = _SIZE.fullmatch(value)
    size = int(match[1]) * 1024 ** _SIZE_UNITS[match[2].upper()] if match else -1
    if size < least and not (none and size == 0):
        bound = f", at least {least}" if least > 1 else ""
        alternative = ", or 0 for none" if none else ""
        raise SettingsError(
            f'{origin}={value!r}: accepted is a number of bytes, such as 1000000, "64MiB" or "1GiB"{bound}{alternative}'
        )
    return size


def _loopback(value: str, origin: str) -> tuple[str, int]:
    match = _LOOPBACK.fullmatch(value)
    if match is None or int(match[3]) > _MAX_PORT:
        raise SettingsError(
            f"{origin}={value!r}: accepted is 127.0.0.1:PORT or [::1]:PORT, since only this machine may connect; port 0 lets "
            "the system choose one, which `runed status` tells"
        )
    return match[1] or match[2], int(match[3])
