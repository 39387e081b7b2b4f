"""The settings of runed, and the only place that reads the environment.

The environment beats `config.json`, which beats the default. A bad value is a `SettingsError` of one line. It names the
variable or key, its value, and the accepted values.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from runed.config_file import read_config
from runed.errors import RunedError, SettingsError
from runed.own_models import Entry, OwnModel, own_aliases, own_models, remote_url, settle_default
from runed.paths import check_home
from runed.setting_values import as_written, boolean, check_port, duration, flag, on_disk, one_of, port, size, whole_number
from runed.trust import check_file
from runed.urls import beneath, is_web_url, path_of_file_url, printable_url, scheme_of

PROFILES = ("memory", "balanced", "throughput")
"""Names of the profiles of the engine."""

ACCELERATORS = ("vulkan", "cuda", "rocm")
"""Names of the accelerators for which there are engines of their own."""

ONNX = "onnx"
"""The name of the engine that is no `llama-server`: ONNX Runtime."""

ONNX_VERSIONS = "onnxruntime-"
"""Start of each version of ONNX Runtime, as in "onnxruntime-1.32.0 (graph 1)". `llama-server` begins its own with a number."""

ENGINES = ("auto", "cpu", *ACCELERATORS, ONNX)
"""Names of the engines to choose from: "auto" for the fastest that works, what `llama-server` computes with, and `ONNX`."""

CONFIG = "config.json"
"""The origin of a setting that stands in the configuration, as `Settings.written` tells it."""

LOG_FORMS = ("auto", "text", "json")
"""The forms of the log on standard error; "auto" is "text" on a terminal, and else "json"."""

LOG_LEVELS = ("info", "warning", "error")
"""The levels that the least important lines of a log can have."""

PROVIDERS = ("cpu", "cuda", "coreml", "dml")
"""Names of what ONNX Runtime computes with."""

_BASE_ENVIRONMENT = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")
"""Variables that every program needs to find its files and to print text."""

_OF_A_LOGIN = {"HOME", "USER", "LOGNAME", "TMPDIR", "RUNED_HOME"}
"""Variables that a service manager sets, or that its unit names."""

_NETWORK_ENVIRONMENT = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_TOKEN"),
)
"""Variables for downloads: behind a proxy, with a private certificate authority, and from the model hub."""

_OF_APPLICATIONS = ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES")
"""Variables with which an application tells OpenTelemetry what it is. The daemon is another program, for many applications."""

HUB = "https://huggingface.co"
"""The model hub."""

_ENGINE_ENVIRONMENT = (
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "GGML_VK_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "GGML_METAL_PATH_RESOURCES"),
    *("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES", "XDG_DATA_HOME", "XDG_DATA_DIRS"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)
"""Variables with which an engine may find its libraries, the drivers of its devices, and its device."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The parsed settings of one daemon or client. `SETTINGS` has their meanings. All paths are absolute.

    Attributes:
        idle_timeout: Seconds; 0 means never.
        disk_cache: Whether `cache` is "disk".
        cache_bytes: `cache_size`; 0 for no cache in memory.
        disk_cache_bytes: `disk_cache_size`; 0 for no cache on disk.
        aliases: Names, each with the name of the model that it stands for; "" for the default model.
        http: Host and port, such as ("127.0.0.1", 8321); None for no port.
        written: The values that are not defaults, as they were written, and their origins: "environment" or "config.json".
    """

    home: Path
    manifest: str | None = None
    llama_server: Path | None = None
    model: Path | None = None
    model_variant: str | None = None
    ctx_size: int = 2048
    idle_timeout: float = 600.0
    keep_source: bool = False
    runed_binary: Path | None = None
    engine: str = "auto"
    onnx_provider: str = "cpu"
    profile: str = "balanced"
    queue_texts: int = 16_384
    queue_bytes: int = 64 * 1024 * 1024
    request_bytes: int = 256 * 1024 * 1024
    disk_cache: bool = False
    cache_bytes: int = 64 * 1024 * 1024
    disk_cache_bytes: int = 1024 * 1024 * 1024
    memory_bytes: int = 0
    max_models: int = 0
    http: tuple[str, int] | None = None
    http_token: bool = True
    http_expose: bool = False
    trust_parents: bool = False
    hf_endpoint: str = HUB
    otel_endpoint: str = ""
    default_model: str = ""
    backend: str = ""
    backend_key_file: Path | None = None
    models: Mapping[str, OwnModel] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=own_aliases)
    log: str = "auto"
    log_level: str = "info"
    progress: bool = True
    debug: bool = False
    written: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)


def load_settings(*, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        home: The home directory, instead of `RUNED_HOME`.
        environ: The environment, instead of the process's own.

    Returns:
        The settings, complete and checked.

    Raises:
        SettingsError: A value cannot be used, or `config.json` cannot be read.
        ForeignPathError: Another user has a hand in the home or the configuration; nothing of them was read.
    """
    env = os.environ if environ is None else environ
    home_path = full_path(os.fspath(home) if home is not None else _get(env, "RUNED_HOME") or _DEFAULT_HOME)
    _check_utf8(str(home_path), "the home")
    trust_parents = boolean(_get(env, "RUNED_TRUST_PARENTS") or "no", "RUNED_TRUST_PARENTS")
    check_home(home_path, trust_parents=trust_parents)
    explicit = _get(env, "RUNED_CONFIG")
    config_path = configuration(home_path, env)
    if explicit or config_path.is_symlink():  # the home does not protect it
        check_file(config_path, trust_parents=trust_parents)
    keys = {name: setting.type for name, setting in SETTINGS.items() if setting.type}
    config = read_config(config_path, keys, required=explicit is not None)
    values: dict[str, Any] = {}
    written: dict[str, tuple[str, str]] = {}
    for name, setting in SETTINGS.items():
        value: Any = setting.default
        origin = setting.variable
        if setting.variable and (found := _get(env, setting.variable)):
            value = found
            written[name] = (_presentable(setting, found), "environment")
        elif setting.type and (found := getattr(config, name, None)) is not None:
            value, origin = found if isinstance(found, dict) else str(found), f"{name} in {config_path}"
            written[name] = (_presentable(setting, value), CONFIG)
            if setting.parse in {_file, _file_or_url}:  # the daemon works in another directory than its clients
                value = beneath(config_path.parent, value)
        if isinstance(value, str):
            _check_utf8(value, origin)
        if setting.field and (value or setting.default):
            values[setting.field] = setting.parse(value, origin)
    settle_default(values, partial(_get, env))
    check_port(values.get("http"), has_token=values["http_token"], exposed=values["http_expose"])
    return Settings(home_path, written=written, **values)


def in_force(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Return all settings in the order of `SETTINGS`: name, variable, value as it was written, and origin."""
    return [
        (name, setting.variable, *settings.written.get(name, (setting.default, "default")))
        for name, setting in SETTINGS.items()
    ]


def _presentable(setting: Setting, value: str | dict[str, Any]) -> str:
    """Return a written value for people. A URL has no user and no password, and of models of the user only names are told."""
    if isinstance(value, dict):
        return ", ".join(value) if setting.field == "models" else ", ".join(f"{name}={other}" for name, other in value.items())
    # Of the URLs, this one alone may lack its scheme: that is told later, as applications share the variable.
    return printable_url(value) if scheme_of(value) or setting.field == "otel_endpoint" else str(value)


def configuration(home: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Return the path of the configuration of a home: `RUNED_CONFIG`, or else `config.json` in it."""
    explicit = _get(os.environ if environ is None else environ, "RUNED_CONFIG")
    return full_path(explicit) if explicit else home / "config.json"


def daemon_environment(environ: Mapping[str, str] | None = None, settings: Settings | None = None) -> dict[str, str]:
    """Return the environment for a daemon that a client starts.

    The daemon outlives the process that starts it, so only variables that it reads are handed on. Relative paths are made
    absolute, since the daemon works in another directory.

    Args:
        environ: The environment of the client, instead of the process's own.
        settings: The settings of the home, which may name variables with keys for engines on other machines.
    """
    env = os.environ if environ is None else environ
    names = {*_BASE_ENVIRONMENT, *_NETWORK_ENVIRONMENT, *_ENGINE_ENVIRONMENT}
    if settings is not None:
        names |= {model.remote.key_variable for model in settings.models.values() if model.remote is not None}
    result = {name: value for name, value in env.items() if name in names or name.startswith(("RUNED_", "OTEL_"))}
    for name in _OF_APPLICATIONS:
        result.pop(name, None)
    for setting in SETTINGS.values():
        if setting.parse in {full_path, _file, _file_or_url} and (value := result.get(setting.variable)):
            result[setting.variable] = str(setting.parse(value, setting.variable))
    return result


def service_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of this process that a daemon needs which a service manager starts, without those of a login."""
    return {name: value for name, value in daemon_environment(settings=settings).items() if name not in _OF_A_LOGIN}


def manager_environment() -> dict[str, str]:
    """Return the environment for a command that asks the user's service manager. `su` and `cron` do not tell where that is."""
    return {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ}


def user_configuration() -> Path:
    """Return the directory for the configuration of this user's programs."""
    return full_path(_get(os.environ, "XDG_CONFIG_HOME") or "~/.config")


def take_from_environment(names: Iterable[str]) -> dict[str, str]:
    """Remove variables from the environment of this process, so that no child gets them. Return those that were set."""
    return {name: value for name in names if (value := os.environ.pop(name, None))}


def engine_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for `llama-server`.

    `llama-server` reads `LLAMA_ARG_*`, `LLAMA_API_KEY`, `AIP_*` and a configuration file below `XDG_CONFIG_HOME` or
    `~/.config`. Each of these could silently change its vectors.

    Args:
        environ: The environment of the daemon, instead of the process's own.
    """
    env = os.environ if environ is None else environ
    names = {*_BASE_ENVIRONMENT, *_ENGINE_ENVIRONMENT}
    # libgomp's threads spin while they wait for each other, which wastes time slices if other processes want the processors.
    # Measured beside two busy processes on two cores: a short text took 184 ms (90th percentile 1.8 s), and 10 ms (24 ms)
    # without spinning. A thousand turns take some microseconds, and bridge the waits between two steps. With them, a short text
    # took 5 ms instead of 15 ms on a quiet machine, and 14 ms instead of 22 ms beside two busy processes.
    defaults = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    # Without XDG_CONFIG_HOME, the engine reads ~/.config/llama.cpp/config.ini. There is no file below /dev/null.
    fixed = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": os.devnull}
    return defaults | {name: value for name, value in env.items() if name in names} | fixed


def proxy_settings() -> dict[str, tuple[str, str]]:
    """Return the proxies of the environment, or else those of the system's settings (macOS).

    Returns:
        The value and the name of the variable, by kind: "http", "https", "all", and "no" for the hosts without a proxy.
    """
    found: dict[str, tuple[str, str]] = {}
    for kind in ("http", "https", "all", "no"):
        for name in (f"{kind.upper()}_PROXY", f"{kind}_proxy"):  # the second one wins
            if (value := _get(os.environ, name)) is not None:
                found[kind] = value, name
    if found:
        return found
    from urllib.request import getproxies  # noqa: PLC0415 # memory that most starts never need

    return {kind: (value, "the system's settings") for kind, value in getproxies().items()}


def secret_variable(name: str) -> str:
    """Return the value of a variable with a secret, which is no setting; "" if it is not set."""
    return (_get(os.environ, name) or "").strip()


def search_path() -> str:
    """Return the `PATH` to search for programs."""
    return os.environ.get("PATH", os.defpath)


def debug_enabled() -> bool:
    """Return whether commands show a stack trace with an error (`RUNED_DEBUG`)."""
    if value := _get(os.environ, "RUNED_DEBUG"):
        return flag(value, "")
    try:
        return load_settings().debug
    except (RunedError, OSError):  # perhaps the error that is to be shown
        return False


def progress_wanted() -> bool:
    """Return whether clients show downloads (`RUNED_PROGRESS`), for one that reads no other setting.

    Raises:
        SettingsError: The value is neither a yes nor a no.
    """
    return boolean(_get(os.environ, "RUNED_PROGRESS") or "yes", "RUNED_PROGRESS")


def _get(env: Mapping[str, str], name: str) -> str | None:
    """Read a variable. An empty one counts as not set, since the two are hard to tell apart in a shell."""
    return env.get(name) or None


def _check_utf8(value: str, origin: str) -> None:
    """Refuse a value with bytes that are not UTF-8: it can stand in no JSON and no message."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{origin} {value!a} is not UTF-8; accepted is UTF-8 alone") from None


def full_path(path: str, origin: str = "") -> Path:
    """Make a path absolute. A user is looked up here, since `Path.expanduser` takes an empty HOME for the root directory."""
    if "\0" in path:
        raise SettingsError(f"{as_written(path, origin) if origin else repr(path)} has a NUL, which no path has; correct it")
    user, slash, rest = path.partition("/")
    if user.startswith("~"):
        try:
            directory = os.environ.get("HOME") if user == "~" else pwd.getpwnam(user[1:]).pw_dir
            path = (directory or pwd.getpwuid(os.getuid()).pw_dir) + slash + rest
        except KeyError:  # a user without an entry in the user database, as in many containers
            raise SettingsError(f"{path}: no home directory is known for ~; set HOME, or RUNED_HOME to a full path") from None
    # resolve() would follow a link that the user chose, and abspath keeps two slashes at the beginning.
    return Path(os.path.abspath(path).replace("//", "/"))  # noqa: PTH100 # see above


def _file(value: str, origin: str) -> Path:
    match scheme_of(value):
        case "":
            return full_path(value, origin)
        case "file":
            try:
                return full_path(path_of_file_url(value), origin)
            except ValueError as error:
                raise SettingsError(f"{origin}: {error}") from None
    raise SettingsError(
        f"{as_written(printable_url(value), origin)}: accepted is the path or the file: URL of a file, since a URL brings no "
        "hash; download the file and name its path here, or name a manifest with its url, sha256 and size as RUNED_MANIFEST"
    )


def _file_or_url(value: str, origin: str) -> str:
    if scheme_of(value) in {"", "file"}:
        return str(_file(value, origin))
    if not is_web_url(value):
        raise SettingsError(
            f"{as_written(printable_url(value), origin)}: accepted is an https, http or file: URL, or the path of a file"
        )
    return value


def _endpoint(value: str, origin: str) -> str:
    if not is_web_url(value):
        raise SettingsError(f"{as_written(printable_url(value), origin)}: accepted is an https or http URL, such as {HUB}")
    return value.rstrip("/")


def _models(value: Mapping[str, Entry], origin: str) -> dict[str, OwnModel]:
    return own_models(value, Path(origin.removeprefix("models in ")), read_path=_file, read_duration=duration)


def _text(value: str, _origin: str) -> str:
    return value


_DEFAULT_HOME = "~/.runed"
_JSON_SIZE = str | int


class Setting(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        variable: The environment variable; "" for none.
        type: The type in `config.json`, where the key is the name of the setting; None for a setting that has no key.
        field: The field of `Settings`; "" for a setting that is read separately.
        parse: Turns the text of a value, or an object of `config.json`, into the value of the field. Its second argument is the
            origin of the value, for an error.
        default: The text of the default; "" for none.
        meaning: The meaning, for docs/configuration.md.
    """

    variable: str
    type: Any
    field: str
    parse: Callable[[Any, str], object]
    default: str
    meaning: str


_CTX_SIZE = partial(whole_number, least=64, most=131_072, what="tokens")  # above what any embedding model reads
_QUEUE_TEXTS = partial(whole_number, least=64, most=1_000_000, what="texts")  # a stream queues up to 64 texts at once
_QUEUE_BYTES = partial(size, least=1024 * 1024)  # one text may be as large as a request
_REQUEST_MEMORY = partial(size, least=128 * 1024 * 1024)  # the largest request and its answer fit in
_MEMORY = partial(size, least=1)
_MAX_MODELS = partial(whole_number, least=1, most=1000, what="models")
_CACHE_SIZE = partial(size, least=1, none=True)
_DISK_CACHE_SIZE = partial(size, least=16 * 1024 * 1024, none=True)  # half of it is for SQLite's log
_ENGINE = partial(one_of, accepted=ENGINES)
_PROVIDER = partial(one_of, accepted=PROVIDERS)
_PROFILE = partial(one_of, accepted=PROFILES)
_LOG = partial(one_of, accepted=LOG_FORMS)
_LOG_LEVEL = partial(one_of, accepted=LOG_LEVELS)

# The formatter would give each argument a line of its own.
# fmt: off
SETTINGS = {
    "home": Setting("RUNED_HOME", None, "", full_path, _DEFAULT_HOME, "the directory of all files; each home has one daemon"),
    "config": Setting("RUNED_CONFIG", None, "", full_path, "", "the configuration file, instead of `config.json` in the home"),
    "model_variant": Setting("RUNED_MODEL_VARIANT", str, "model_variant", _text, "",
        "the model of the manifest to serve, instead of its default"),
    "default_model": Setting("RUNED_DEFAULT_MODEL", str, "default_model", _text, "",
        "the model of requests that name none: a name of `runed models`. It goes before `model_variant`, not before `model`"),
    "models": Setting("", dict[str, Entry], "models", _models, "",
        "models of your own by name, and changes of others; see [Models](models.md#models-of-your-own)"),
    "aliases": Setting("", dict[str, str], "aliases", own_aliases, "",
        'further names of models: `{"small": "bge-m3"}`; `""` stands for the default model. Names of OpenAI mean that, too'),
    "idle_timeout": Setting("RUNED_IDLE_TIMEOUT", str, "idle_timeout", duration, "10m",
        "time without an embedding after which the engine is stopped; `0` never stops it"),
    "ctx_size": Setting("RUNED_CTX_SIZE", int, "ctx_size", _CTX_SIZE, "2048",
        "the engine's context in tokens, 64 to 131072; rounded up to a multiple of 256, and at most that of the model"),
    "llama_server": Setting("RUNED_LLAMA_SERVER", str, "llama_server", _file, "",
        "a `llama-server` of your own; none is fetched then. A script must `exec` it, or it may outlive a killed daemon"),
    "engine": Setting("RUNED_ENGINE", str, "engine", _ENGINE, "auto",
        "the engine, and what it computes with: `auto` for the best that works; `cpu`, `vulkan`, `cuda` or `rocm` for "
        "`llama-server`; `onnx` for ONNX Runtime; see [devices](devices.md)"),
    "onnx_provider": Setting("RUNED_ONNX_PROVIDER", str, "onnx_provider", _PROVIDER, "cpu",
        "what ONNX Runtime computes with: `cpu`, `cuda`, `coreml` or `dml`, if the installed package of it can"),
    "model": Setting("RUNED_MODEL", str, "model", _file, "",
        "a GGUF or an ONNX file of your own, as a path or a `file:` URL; none is fetched then"),
    "backend": Setting("RUNED_BACKEND", str, "backend", remote_url, "",
        "the URL of an engine on another machine that serves the default model; see [remote models](remote.md)"),
    "backend_key_file": Setting("RUNED_BACKEND_KEY_FILE", str, "backend_key_file", _file, "",
        "the file of the key for that engine"),
    "manifest": Setting("RUNED_MANIFEST", str, "manifest", _file_or_url, "",
        "a manifest instead of the one in the package: a URL (https; http with a warning in the log; file) or a path"),
    "keep_source": Setting("RUNED_KEEP_SOURCE", bool, "keep_source", boolean, "no",
        "whether to keep the download that a variant was made from: 1, true, yes, on or 0, false, no, off"),
    "profile": Setting("RUNED_PROFILE", str, "profile", _PROFILE, "balanced",
        "how the engine is run: `memory`, `balanced` or `throughput`; see below"),
    "queue_texts": Setting("RUNED_QUEUE_TEXTS", int, "queue_texts", _QUEUE_TEXTS, "16384",
        "the most texts that may wait, 64 to 1000000; more are refused with QUEUE_FULL. "
        "An eighth of these texts, and of the bytes, is reserved for interactive texts"),
    "queue_bytes": Setting("RUNED_QUEUE_BYTES", _JSON_SIZE, "queue_bytes", _QUEUE_BYTES, "64MiB",
        "the most bytes of text that may wait, at least 1 MiB"),
    "request_memory": Setting("RUNED_REQUEST_MEMORY", _JSON_SIZE, "request_bytes", _REQUEST_MEMORY, "256MiB",
        "the most memory for all requests that are in flight, at least 128 MiB; more are refused with QUEUE_FULL"),
    "memory": Setting("RUNED_MEMORY", _JSON_SIZE, "memory_bytes", _MEMORY, "",
        "the most memory of all engines together; by default half of the machine's, which one engine alone may exceed"),
    "max_models": Setting("RUNED_MAX_MODELS", int, "max_models", _MAX_MODELS, "",
        "the most engines that run at once, 1 to 1000; by default as many as the memory holds"),
    "cache": Setting("RUNED_CACHE", str, "disk_cache", on_disk, "memory",
        "the place of cached vectors: `memory`, or `disk` for both"),
    "cache_size": Setting("RUNED_CACHE_SIZE", _JSON_SIZE, "cache_bytes", _CACHE_SIZE, "64MiB",
        "the size of the cache in memory; `0` for none"),
    "disk_cache_size": Setting("RUNED_DISK_CACHE_SIZE", _JSON_SIZE, "disk_cache_bytes", _DISK_CACHE_SIZE, "1GiB",
        "the size of the cache on disk, at least 16 MiB; `0` for none"),
    "http": Setting("RUNED_HTTP", str, "http", port, "",
        "where to serve the APIs of OpenAI, Ollama and TEI besides the socket: `127.0.0.1:PORT` or `[::1]:PORT`; see below"),
    "http_token": Setting("RUNED_HTTP_TOKEN", bool, "http_token", boolean, "on",
        "whether requests to that port need the token: 1, true, yes, on or 0, false, no, off; see below for what `off` opens"),
    "http_expose": Setting("RUNED_HTTP_EXPOSE", bool, "http_expose", boolean, "no",
        "whether other machines may connect to that port: `RUNED_HTTP` may be `0.0.0.0:PORT` then, and needs the token"),
    "runed_binary": Setting("", str, "runed_binary", full_path, "", "the `runed` that clients start"),
    "trust_parents": Setting("RUNED_TRUST_PARENTS", None, "trust_parents", boolean, "no",
        "whether to use a home, or a configuration, below a directory that others own or can write to: they could replace it"),
    "hf_endpoint": Setting("HF_ENDPOINT", str, "hf_endpoint", _endpoint, HUB,
        "a mirror of the model hub, from which its files are fetched instead"),
    "otel_endpoint": Setting("OTEL_EXPORTER_OTLP_ENDPOINT", str, "otel_endpoint", _text, "",
        "the collector of OpenTelemetry that gets traces and metrics, such as `http://127.0.0.1:4318`; "
        "see [observability](observability.md)"),
    "log": Setting("RUNED_LOG", str, "log", _LOG, "auto",
        "the form of the log on standard error: `text` for people, `json` for programs, or `auto`, which is `text` on a "
        "terminal. Log files are JSON"),
    "log_level": Setting("RUNED_LOG_LEVEL", str, "log_level", _LOG_LEVEL, "info",
        "the least important lines of the log: `info`, `warning` or `error`"),
    "progress": Setting("RUNED_PROGRESS", bool, "progress", boolean, "yes",
        "whether the Python client shows the progress of a download on a terminal, and in notebooks; and whether commands show "
        "that of downloads, starts and jobs"),
    "debug": Setting("RUNED_DEBUG", bool, "debug", flag, "no", "whether commands show a stack trace with an error"),
}
# fmt: on
"""Every setting by its name. docs/configuration.md shows this table, and a test compares them."""
