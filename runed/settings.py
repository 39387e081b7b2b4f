"""The settings of runed, and the only place that reads the environment.

The environment beats `config.json`, which beats the default. A value that cannot be used is a `SettingsError` of one line that
names the variable or key, its value and what is accepted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import durationpy
import msgspec

from runed.errors import SettingsError

DEFAULT_CTX_SIZE = 2048
DEFAULT_IDLE_TIMEOUT = "10m"

MIN_CTX_SIZE = 64
MAX_CTX_SIZE = 131_072
"""Above what any embedding model reads; the model's own context is the limit that counts (see `backend`)."""

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
    """

    version: int = 1
    llama_server: str | None = None
    model: str | None = None
    runed_binary: str | None = None
    idle_timeout: str | None = None
    model_variant: str | None = None
    keep_source: bool | None = None


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
            return value, f"{key} in {config_path}"
        return default, variable

    llama_server, _ = choose("RUNED_LLAMA_SERVER", "llama_server")
    model, _ = choose("RUNED_MODEL", "model")
    variant, _ = choose("RUNED_MODEL_VARIANT", "model_variant")
    idle, idle_origin = choose("RUNED_IDLE_TIMEOUT", "idle_timeout", DEFAULT_IDLE_TIMEOUT)
    assert idle is not None
    keep = _get(env, "RUNED_KEEP_SOURCE")
    return Settings(
        home=home_path,
        manifest=_get(env, "RUNED_MANIFEST"),
        llama_server=_absolute(llama_server) if llama_server else None,
        model=_absolute(model) if model else None,
        model_variant=variant or None,
        ctx_size=_ctx_size(_get(env, "RUNED_CTX_SIZE")),
        idle_timeout=_duration(idle, idle_origin),
        keep_source=_boolean(keep, "RUNED_KEEP_SOURCE") if keep else bool(config.keep_source),
        runed_binary=_absolute(config.runed_binary) if config.runed_binary else None,
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
    defaults = {"OMP_WAIT_POLICY": "passive"}
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


def _ctx_size(value: str | None) -> int:
    if value is None:
        return DEFAULT_CTX_SIZE
    # Counted first, since int() refuses thousands of digits by an error of its own.
    if (
        value.isascii()
        and value.isdigit()
        and len(value) <= len(str(MAX_CTX_SIZE))
        and MIN_CTX_SIZE <= int(value) <= MAX_CTX_SIZE
    ):
        return int(value)
    raise SettingsError(f"RUNED_CTX_SIZE={value!r}: accepted is a whole number of tokens from {MIN_CTX_SIZE} to {MAX_CTX_SIZE}")


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
