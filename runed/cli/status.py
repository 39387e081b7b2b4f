"""`runed status`: show the state and the cost of the daemon. It never starts one."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from runed.cli.boundary import ExitCode, complain, tell
from runed.domain.engines import ONNX_VERSIONS, engine_name
from runed.errors import DaemonUnavailableError, DeadlineExceededError
from runed.lifecycle.asking import ANSWER_SECONDS, Connected, Health, Info, Lane, Model, Setting, look
from runed.lifecycle.hold import read_hold
from runed.lifecycle.presence import Condition, Presence, observe
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.service import Service, service_of
from runed.lifecycle.spawn import find_process
from runed.paths import Paths
from runed.peers import programs_at_port
from runed.processes import is_child, program_title, resident_bytes
from runed.settings import load_settings

DESCRIPTION = """\
Show what the daemon is doing and what it costs. Never starts a daemon and never
wakes a suspended engine.
"""

EPILOG = """\
exit codes:
  0  a daemon runs, and embeds or will (it may be starting or asleep)
  1  one runs, but does not answer within 5 seconds
  3  none runs
  4  one runs, but embeddings fail; the line `state` says why

with --json, standard output is one JSON object with the fields of the calls
Info and Health (see runed.proto), and:
  running              whether a daemon runs
  condition            why a daemon that runs does not answer: "starting",
                       "shutting down", "stopped" (by SIGSTOP) or "overloaded";
                       null if it answers. Unless it answers, the only other
                       fields are pid, home, socket and log
  pid                  the process of the daemon; 0 if it cannot be seen from
                       here, as that of a container
  daemon_memory_bytes  resident memory of the daemon
  engine_memory_bytes  resident memory of the engine, 0 while none runs
  engine_reason        why this engine serves, if a comparison decided that
  models               the models in use, each with its file, engine, device,
                       slots, context, memory and time until it sleeps
  clients              the programs that are connected to the socket
  settings             all settings in force, each with its value and origin:
                       "default", "environment", "config.json" or "tuned"
  http, http_token     the URL of the OpenAI API and the file of its token, if
                       RUNED_HTTP is set; "" if it needs no token
  port_clients         the programs of yours that are connected to that port
  home                 the directory of all files
  log                  the log of a daemon that a client started
  service              the service that starts it, only if none runs; and
  service_state        what its manager tells of it
  kept_stopped_seconds how long `runed stop --for` still keeps it stopped; only
                       if none runs, and it does

examples:
  runed status
  runed status --settings                       all settings, and their origins
  runed status --json | jq '.models[].memory_bytes'
"""

_PAUSE = 0.1
"""Seconds between two tries to ask a daemon that breaks connections."""

_IN_FILE = "config.json"
"""The origin of a setting that the configuration has, whatever the name of the file is."""

_PHASES = {
    "FETCHING_LLAMA_SERVER": "fetching the engine",
    "FETCHING_MODEL": "fetching the model",
    "STARTING_LLAMA_SERVER": "starting the engine",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The answers of a running daemon, and the resident memory of daemon and engine in bytes; 0 if it is not known."""

    info: Info
    health: Health
    daemon_memory: int
    engine_memory: int

    @property
    def engine_reason(self) -> str:
        """Why the engine is the one that it is, if a comparison decided that."""
        return next((model.engine_reason for model in self.health.models if model.name == self.info.model), "")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")
    parser.add_argument("--settings", action="store_true", help="show all settings in force, and where each comes from")


def run(arguments: argparse.Namespace) -> int:
    """Ask the daemon and print its answers."""
    paths = Paths(load_settings().home)
    places = {"socket": str(paths.socket), "home": str(paths.home), "log": str(paths.daemon_log)}
    report = _ask(paths)
    if isinstance(report, Presence):
        return _tell_why_not(report, places, as_json=arguments.json)
    http = _http(paths, report.info)
    at_port = _at_port(http)
    if arguments.json:
        programs = {"port_clients": list(map(msgspec.structs.asdict, at_port))} if http else {}
        _print({"running": True, "condition": None} | _as_dict(report) | places | http | programs)
    elif arguments.settings:
        tell("\n".join(_setting_lines(report.info.settings, paths)))
    else:
        lines = _as_lines(report, paths) | places
        if http:
            lines["http"] = _http_words(http, at_port)
        tell("\n".join(_labelled(name, value) for name, value in lines.items()))
    return ExitCode.DEGRADED if report.health.is_degraded else ExitCode.OK


def _ask(paths: Paths) -> Report | Presence:
    """Return the answers of the daemon, or why there are none."""
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while True:
            try:
                return _report(paths, *look(paths, timeout=max(deadline - time.monotonic(), 0.001)))
            except DaemonUnavailableError:
                presence = observe(paths)
                if presence.condition is not Condition.OVERLOADED:
                    return presence
                time.sleep(_PAUSE)  # it listens: it may only have had too many connections
    except DeadlineExceededError:
        return observe(paths)


def _tell_why_not(presence: Presence, places: dict[str, str], *, as_json: bool) -> ExitCode:
    running = presence.condition is not Condition.ABSENT
    hold = None if running else read_hold(presence.paths.hold)
    service = None if running else service_of(presence.paths.home)
    if as_json:
        why = {"condition": presence.condition.name.lower().replace("_", " "), "pid": presence.pid or 0} if running else {}
        kept = {"kept_stopped_seconds": round(hold.remaining)} if hold else {}
        managed = {"service": service.name, "service_state": service.state().words} if service else {}
        _print({"running": running} | why | places | kept | managed)
    elif running:
        complain(str(presence))
    elif hold:
        tell(
            f"no daemon runs for {presence.paths.home}, and `runed stop --for` keeps it so until {hold.until}; "
            "`runed ensure --anyway` starts it now"
        )
    elif service:
        tell(f"no daemon runs for {presence.paths.home}; {_start_by(service)}")
    else:
        tell(f"no daemon runs for {presence.paths.home}; it starts with the first `runed embed`, or by `runed ensure`")
    return ExitCode.FAILED if running else ExitCode.NOT_RUNNING


def _start_by(service: Service) -> str:
    """Return how the service of a home starts its daemon, or why it does not."""
    state = service.state()
    how = "starts it with the next call" if state.listens else "does not start it; `runed service install` mends it"
    return f"its service {how}: {state.words}; `{service.trouble}` tells more"


def _report(paths: Paths, info: Info, health: Health) -> Report:
    # In a container that shares the home, the pids of Health are those of other processes, if of any.
    process = find_process(paths)
    if process is None or process.pid != health.pid:
        health = msgspec.structs.replace(health, pid=process.pid if process else 0)
        return Report(info, health, resident_bytes(health.pid) if process else 0, 0)
    engine = resident_bytes(health.engine_pid) if is_child(health.engine_pid, process) else 0
    return Report(info, health, resident_bytes(process.pid), engine)


def _http(paths: Paths, info: Info) -> dict[str, str]:
    """Return the URL of the OpenAI API and the file of its token, if a loopback port serves it; "" for no token."""
    record = DaemonRecord.read(paths.daemon_record)
    if record is None or not record.http:
        return {}
    return {"http": f"{record.http}/v1", "http_token": str(paths.http_token) if info.needs_token else ""}


def _at_port(http: dict[str, str]) -> list[Connected]:
    """Return the programs of this user that are connected to the port."""
    port = urlsplit(http["http"]).port if http else None
    if port is None:
        return []
    programs = sorted(programs_at_port(port).items())
    return [Connected(pid, program_title(pid), connections) for pid, connections in programs]


def _http_words(http: dict[str, str], programs: list[Connected]) -> str:
    token = http["http_token"]
    guard = f"with the token in {token}" if token else "open to every user of this machine, since RUNED_HTTP_TOKEN is off"
    connected = f"; connected: {', '.join(map(client_words, programs))}" if programs else ""
    return f"{http['http']}, {guard}{connected}"


def _labelled(name: str, value: str) -> str:
    """Return a value after its label. Each model begins with the label, and its indented lines stand below it without one."""
    rows = value.split("\n")
    return "\n".join(f"{'' if row.startswith(' ') else name:<9} {row}" for row in rows)


def _print(document: dict[str, object]) -> None:
    import json  # noqa: PLC0415 # 5 ms that the lines for people do not spend

    print(json.dumps(document, indent=2))


def _as_dict(report: Report) -> dict[str, object]:
    return {
        **_snake(report.health),
        "daemon_memory_bytes": report.daemon_memory,
        "engine_memory_bytes": report.engine_memory,
        "engine_reason": report.engine_reason,
        **_snake(report.info),
    }


def _snake(struct: msgspec.Struct) -> dict[str, object]:
    """Return a struct as a dictionary with the names of its fields in Python, not those in JSON."""
    return {name: _plain(value) for name, value in msgspec.structs.asdict(struct).items()}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return _snake(value) if isinstance(value, msgspec.Struct) else value


def _engine(report: Report) -> str:
    info, pid = report.info, report.health.engine_pid
    if info.accelerator == "remote":
        return f"on another machine, {info.device}"
    if not (info.model_identity or pid):
        return f"not chosen yet, {_profile(info)}"  # its version, which names it, is told with the model
    name = f"{engine_name(info.engine_version)} {info.engine_version.removeprefix(ONNX_VERSIONS)}".strip()
    process = _process(pid, report.engine_memory) if pid else "not running"
    return ", ".join(filter(None, [name, report.engine_reason, _profile(info), process]))


def _as_lines(report: Report, paths: Paths) -> dict[str, str]:
    info, health = report.info, report.health
    variant = f" ({info.model_variant})" if info.model_variant else ""
    lines = {
        "state": _state(health),
        "model": f"{info.model_name}{variant}, {info.model_identity}" if info.model_identity else "not installed yet",
        "vectors": f"{info.vector_dim} dimensions, of texts of at most {info.max_text_length} tokens"
        if info.vector_dim
        else "-",
        "routing": f"centroid set {info.centroid_set_version}" if info.centroid_set_version else "no centroid set",
        "engine": _engine(report),
        "device": _device(info),
        "models": "\n".join(_model(model, told=health.message) for model in health.models),
        "daemon": f"runed {info.daemon_version}, {_process(health.pid, report.daemon_memory)}, "
        f"up {duration(health.uptime_seconds)}",
        "clients": _clients(health),
        "requests": f"{health.total_requests} in all, {health.in_flight_requests} in flight, "
        f"{health.refused_requests} refused, {health.engine_restarts} engine restarts",
        "queues": f"interactive {_lane(health.interactive)}; bulk {_lane(health.bulk)}",
        "speed": f"in the last minute {health.tokens_per_second:,.0f} tokens/s, {health.mean_batch_texts:.1f} texts a batch; "
        f"{health.total_texts:,} texts in all",
        "cache": f"{health.cache_entries:,} vectors, {megabytes(health.cache_bytes)}"
        f"{f', and {megabytes(health.disk_cache_bytes)} on disk' if health.disk_cache_bytes else ''}; "
        f"{health.cache_hits:,} found there, "
        f"{health.shared_texts:,} shared in flight",
        "limits": "; ".join(info.restrictions),
        "settings": _settings(info.settings, paths),
    }
    # An older daemon tells no models, clients and settings.
    return {name: line for name, line in lines.items() if line}


def _model(model: Model, *, told: str) -> str:
    """Return a model on one line, and its files on a second one. The message `told` of the line above is not repeated."""
    if not (model.engine_version or model.slots):
        message = "" if model.message == told else model.message
        return ": ".join(filter(None, [f"{model.name or 'the default model'}, {state_words(model)}", message]))
    tuned = f", tuned at {model.tuned_at}" if model.tuned_at else ""
    context = f", a context of {model.context:,} tokens" if model.context else ""
    memory = f"pid {model.engine_pid}, {megabytes(model.memory_bytes)}" if model.engine_pid else "not running"
    what = f"{device_words(model)}, {model.slots} texts at once{context}{tuned}"
    files = f"\n  {model.file}\n  by {model.engine_path}" if model.file else ""
    return f"{model.name}: {state_words(model)}, {what}; {memory}{sleep_words(model)}{files}"


def state_words(model: Model) -> str:
    """Return the state of a model in words."""
    phase = _PHASES.get(model.phase or "")
    return f"{model.status.lower()}, {phase}" if phase else model.status.lower()


def device_words(model: Model) -> str:
    """Return the device of a model in words."""
    if model.accelerator == "remote":
        return f"on another machine, {model.device}"
    return f"{model.device} ({model.accelerator})" if model.device else "the processors"


def sleep_words(model: Model) -> str:
    """Return when the engine of a model sleeps, as the end of a sentence."""
    if not model.engine_pid:
        return ""
    if not model.keep_alive_seconds:
        return ", never sleeps"
    return f", sleeps in {duration(math.ceil(model.seconds_until_sleep))}" if model.seconds_until_sleep else ""


def _clients(health: Health) -> str:
    """Return the programs that are connected; "" if the daemon tells none, not even this command."""
    if not health.clients:
        return ""
    others = sorted(health.others(), key=lambda client: (not client.name, client.name, client.pid))
    return ", ".join(map(client_words, others)) or "none but this command"


def client_words(client: Connected) -> str:
    """Return a connected program in words, with its connections if there are several."""
    return f"{client}, {client.connections} connections" if client.connections > 1 else str(client)


def _settings(settings: tuple[Setting, ...], paths: Paths) -> str:
    if not settings:
        return ""
    changed: dict[str, list[str]] = {}
    for setting in settings:
        if setting.origin != "default" and setting.name != "home":
            changed.setdefault(_origin(setting, settings, paths), []).append(f"{_written_as(setting)}={setting.value}")
    told = "; ".join(f"{', '.join(values)} ({origin})" for origin, values in changed.items())
    return f"{told or 'all default'}; `runed status --settings` shows all"


def _setting_lines(settings: tuple[Setting, ...], paths: Paths) -> list[str]:
    if not settings:
        return ["this daemon is of an older version, which does not tell its settings"]
    rows = [(_written_as(setting), setting.value or "-", _origin(setting, settings, paths)) for setting in settings]
    name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{row[0]:<{name}}  {row[1]:<{min(value, 48)}}  {row[2]}" for row in rows]


def _written_as(setting: Setting) -> str:
    """Return the name that a setting has where it was written: a key of the file, or a variable."""
    return setting.name if setting.origin == _IN_FILE else setting.variable or setting.name


def _origin(setting: Setting, settings: tuple[Setting, ...], paths: Paths) -> str:
    """Return the origin of a setting; of one in the configuration, the path of the file that the daemon has read."""
    if setting.origin != _IN_FILE:
        return setting.origin
    return next((other.value for other in settings if other.name == "config" and other.value), str(paths.config))


def _device(info: Info) -> str:
    """Return what the engine computes with, and how much a vector depends on the other texts there."""
    if not info.accelerator or info.accelerator == "remote":
        return "-"
    name = f"{info.device} ({info.accelerator})" if info.device else "the processors"
    if info.device_tuned_at:
        name += f", the fastest as measured at {info.device_tuned_at} (`runed bench --reset` undoes that)"
    cosine = math.floor(info.company_cosine * 1e7) / 1e7  # not rounded up to a 1 that it is not
    return f"{name}; a text alone and beside others has a cosine of {cosine:.7f}" if cosine else name


def _profile(info: Info) -> str:
    tuned = f" as tuned at {info.tuned_at} (`runed bench --reset` undoes that)" if info.tuned_at else ""
    return f"profile {info.profile}{tuned}"


def _lane(lane: Lane) -> str:
    if not lane.wait_p99_seconds:
        return f"{lane.queued_texts:,} waiting"
    waits = f"waited p50 {_milliseconds(lane.wait_p50_seconds)}, p99 {_milliseconds(lane.wait_p99_seconds)}"
    return f"{lane.queued_texts:,} waiting ({waits})"


def _state(health: Health) -> str:
    state = health.status.lower().replace("_", " ")
    if health.phase:
        state += f", {_PHASES.get(health.phase, 'loading')}"
    if health.bytes_total:
        state += f", {health.bytes_done / health.bytes_total:.0%} of {megabytes(health.bytes_total)}"
    return f"{state}: {health.message}" if health.message else state


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _process(pid: int, memory: int) -> str:
    """Return the pid and the memory of a process, which may run where they cannot be seen."""
    seen = f"pid {pid}" if pid else "pid not seen from here"
    return f"{seen}, {megabytes(memory)}" if memory else f"{seen}, memory unknown"


def megabytes(size: int) -> str:
    """Return a number of bytes as megabytes."""
    return f"{size / 1_000_000:,.0f} MB"


def duration(seconds: int) -> str:
    """Return a time with its two largest units."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])
