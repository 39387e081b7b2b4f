"""`runed status`: show the state and the cost of the daemon. It never starts one."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace

import runed
from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.engines import comparison_of, reason_for
from runed.cli.waiting import ANSWER_SECONDS, PHASES
from runed.client.calls.patience import Deadline
from runed.client.look import look
from runed.domain.engines import LLAMA_SERVER, ONNX_VERSIONS, engine_name
from runed.errors import DaemonUnavailableError, DeadlineExceededError
from runed.lifecycle.presence import Condition, Presence, observe
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import find_process
from runed.paths import Paths
from runed.processes import is_child, resident_bytes
from runed.settings import load_settings

DESCRIPTION = """\
Show what the daemon is doing and what it costs. Never starts a daemon and never
wakes a suspended engine. Exits with 3 if none runs, and with 1 if one runs but
does not answer within 5 seconds.
"""

EPILOG = """\
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
  http, http_token     the URL of the OpenAI API and the file of its token, if
                       RUNED_HTTP is set
  home                 the directory of all files
  log                  the log of a daemon that a client started
"""

_PAUSE = 0.1
"""Seconds between two tries to ask a daemon that breaks connections."""


@dataclass(frozen=True, slots=True)
class Report:
    """The answers of a running daemon, and the resident memory of daemon and engine in bytes; 0 if it is not known.

    `engine_reason` tells why the engine is the one that it is, if a comparison decided that.
    """

    info: runed.Info
    health: runed.Health
    daemon_memory: int
    engine_memory: int
    engine_reason: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Ask the daemon and print its answers."""
    paths = Paths(load_settings().home)
    places = {"socket": str(paths.socket), "home": str(paths.home), "log": str(paths.daemon_log)}
    report = _ask(paths)
    if isinstance(report, Presence):
        return _tell_why_not(report, places, as_json=arguments.json)
    http = _http(paths)
    if arguments.json:
        print(json.dumps({"running": True, "condition": None} | _as_dict(report) | places | http, indent=2))
    else:
        lines = _as_lines(report) | places
        if http:
            lines["http"] = f"{http['http']}, with the token in {http['http_token']}"
        tell("\n".join(f"{name:<9} {value}" for name, value in lines.items()))
    return ExitCode.OK


def _ask(paths: Paths) -> Report | Presence:
    """Return the answers of the daemon, or why there are none."""
    deadline = Deadline(ANSWER_SECONDS)
    try:
        while True:
            try:
                return _report(paths, *look(paths.home, timeout=deadline.remaining() or 0))
            except DaemonUnavailableError:
                presence = observe(paths)
                if presence.condition is not Condition.OVERLOADED:
                    return presence
                time.sleep(_PAUSE)  # it listens: it may only have had too many connections
    except DeadlineExceededError:
        return observe(paths)


def _tell_why_not(presence: Presence, places: dict[str, str], *, as_json: bool) -> ExitCode:
    running = presence.condition is not Condition.ABSENT
    if as_json:
        why = {"condition": presence.condition.name.lower().replace("_", " "), "pid": presence.pid or 0} if running else {}
        print(json.dumps({"running": running} | why | places, indent=2))
    elif running:
        complain(str(presence))
    else:
        tell(f"no daemon runs for {presence.paths.home}; it starts with the first `runed embed`, or by `runed ensure`")
    return ExitCode.FAILED if running else ExitCode.NOT_RUNNING


def _report(paths: Paths, info: runed.Info, health: runed.Health) -> Report:
    # In a container that shares the home, the pids of Health are those of other processes, if of any.
    process = find_process(paths)
    if process is None or process.pid != health.pid:
        health = replace(health, pid=process.pid if process else 0)
        return Report(info, health, resident_bytes(health.pid) if process else 0, 0, _engine_reason(paths, info))
    engine = resident_bytes(health.engine_pid) if is_child(health.engine_pid, process) else 0
    return Report(info, health, resident_bytes(process.pid), engine, _engine_reason(paths, info))


def _engine_reason(paths: Paths, info: runed.Info) -> str:
    """Return why the engine serves that does; "" if an accelerator, or no comparison, decided that."""
    engine = engine_name(info.engine_version)
    if info.accelerator != "cpu" and engine == LLAMA_SERVER:
        return ""
    return reason_for(engine, comparison_of(paths, info.model_identity.removeprefix("sha256:")))


def _http(paths: Paths) -> dict[str, str]:
    """Return the URL of the OpenAI API and the file of its token, if a loopback port serves it."""
    record = DaemonRecord.read(paths.daemon_record)
    if record is None or not record.http:
        return {}
    return {"http": f"{record.http}/v1", "http_token": str(paths.http_token)}


def _as_dict(report: Report) -> dict[str, object]:
    health = report.health
    return {
        **asdict(health),
        "status": health.status.name,
        "phase": health.phase.name if health.phase else None,
        "daemon_memory_bytes": report.daemon_memory,
        "engine_memory_bytes": report.engine_memory,
        "engine_reason": report.engine_reason,
        **asdict(report.info),
    }


def _engine(report: Report) -> str:
    info, pid = report.info, report.health.engine_pid
    if info.accelerator == "remote":
        return f"on another machine, {info.device}"
    if not (info.model_identity or pid):
        return f"not chosen yet, {_profile(info)}"  # its version, which names it, is told with the model
    name = f"{engine_name(info.engine_version)} {info.engine_version.removeprefix(ONNX_VERSIONS)}".strip()
    process = _process(pid, report.engine_memory) if pid else "not running"
    return ", ".join(filter(None, [name, report.engine_reason, _profile(info), process]))


def _as_lines(report: Report) -> dict[str, str]:
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
        "daemon": f"runed {info.daemon_version}, {_process(health.pid, report.daemon_memory)}, "
        f"up {_duration(health.uptime_seconds)}",
        "requests": f"{health.total_requests} in all, {health.in_flight_requests} in flight, "
        f"{health.refused_requests} refused, {health.engine_restarts} engine restarts",
        "queues": f"interactive {_lane(health.interactive)}; bulk {_lane(health.bulk)}",
        "speed": f"in the last minute {health.tokens_per_second:,.0f} tokens/s, {health.mean_batch_texts:.1f} texts a batch; "
        f"{health.total_texts:,} texts in all",
        "cache": f"{health.cache_entries:,} vectors, {_megabytes(health.cache_bytes)}"
        f"{f', and {_megabytes(health.disk_cache_bytes)} on disk' if health.disk_cache_bytes else ''}; "
        f"{health.cache_hits:,} found there, "
        f"{health.shared_texts:,} shared in flight",
    }
    return lines | ({"limits": "; ".join(info.restrictions)} if info.restrictions else {})


def _device(info: runed.Info) -> str:
    """Return what the engine computes with, and how much a vector depends on the other texts there."""
    if not info.accelerator or info.accelerator == "remote":
        return "-"
    name = f"{info.device} ({info.accelerator})" if info.device else "the processors"
    if info.device_tuned_at:
        name += f", the fastest as measured at {info.device_tuned_at} (`runed bench --reset` undoes that)"
    cosine = math.floor(info.company_cosine * 1e7) / 1e7  # not rounded up to a 1 that it is not
    return f"{name}; a text alone and beside others has a cosine of {cosine:.7f}" if cosine else name


def _profile(info: runed.Info) -> str:
    tuned = f" as tuned at {info.tuned_at} (`runed bench --reset` undoes that)" if info.tuned_at else ""
    return f"profile {info.profile}{tuned}"


def _lane(lane: runed.LaneHealth) -> str:
    if not lane.wait_p99_seconds:
        return f"{lane.queued_texts:,} waiting"
    waits = f"waited p50 {_milliseconds(lane.wait_p50_seconds)}, p99 {_milliseconds(lane.wait_p99_seconds)}"
    return f"{lane.queued_texts:,} waiting ({waits})"


def _state(health: runed.Health) -> str:
    state = health.status.name.lower().replace("_", " ")
    if health.phase:
        state += f", {PHASES[health.phase]}"
    if health.bytes_total:
        state += f", {health.bytes_done / health.bytes_total:.0%} of {_megabytes(health.bytes_total)}"
    return f"{state}: {health.message}" if health.message else state


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _process(pid: int, memory: int) -> str:
    """Return the pid and the memory of a process, which may run where they cannot be seen."""
    seen = f"pid {pid}" if pid else "pid not seen from here"
    return f"{seen}, {_megabytes(memory)}" if memory else f"{seen}, memory unknown"


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])
