"""Checks of the home: modes, socket, stale processes, token, port, and other installations of runed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from runed.doctor.finding import Finding, Patient, failed, ok, warning
from runed.doctor.logs import parted, remedy_of
from runed.errors import RunedError
from runed.files import read_record
from runed.lifecycle.hold import read_hold
from runed.lifecycle.launch import command_version
from runed.lifecycle.listener import find_listener
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.service import is_dormant
from runed.paths import check_home, check_socket_dir
from runed.processes import ProcessIdentity, is_alive, program_title
from runed.settings import search_path
from runed.trust import mode_of
from runed.version import __version__

_VERSION_SECONDS = 5.0
"""Seconds that another `runed` may take to tell its version."""


def home(patient: Patient) -> Iterator[Finding]:
    """Check that the home is private."""
    place = patient.paths.home
    if not place.exists():
        yield ok("home", f"{place} is made by the first daemon")
        return
    try:
        check_home(place, trust_parents=patient.settings.trust_parents)
    except RunedError as error:
        yield failed("home", error.message, "see `runed explain FOREIGN_PATH`")
        return
    info = place.stat()
    if stat.S_IMODE(info.st_mode) & 0o077:
        yield warning("home", f"others can look into {place} (mode {mode_of(info)})", f"run `chmod 700 {place}`")
    else:
        yield ok("home", f"{place}, mode {mode_of(info)}")


def sockets(patient: Patient) -> Iterator[Finding]:
    """Check the socket: its mode, its directory, and that somebody listens if it is there."""
    path = patient.paths.socket
    try:
        check_socket_dir(path)
        info = path.lstat()
    except FileNotFoundError:
        yield ok("socket", f"none at {path}, since no daemon runs")
        return
    except RunedError as error:
        yield failed("socket", error.message, "see `runed explain FOREIGN_PATH`")
        return
    if not stat.S_ISSOCK(info.st_mode):
        yield failed("socket", f"{path} is no socket", "move it away, and run `runed ensure`")
    elif stat.S_IMODE(info.st_mode) & 0o177:
        yield failed(
            "socket", f"others may connect to {path} (mode {mode_of(info)})", "run `runed stop`; the next daemon makes it anew"
        )
    elif patient.health is None and is_dormant(patient.paths):
        yield ok("socket", f"{path}, on which a service manager listens")
    elif patient.health is None and find_listener(path) is None:
        yield warning("socket", f"{path} was left by a daemon that was killed", "nothing: the next daemon takes its place")
    else:
        yield ok("socket", f"{path}, mode {mode_of(info)}")


def pids(patient: Patient) -> Iterator[Finding]:
    """Check that the records name processes that live, and that no engine outlived its daemon."""
    record = DaemonRecord.read(patient.paths.daemon_record)
    lives = record is not None and record.is_alive()
    if record is not None and not lives and patient.health is None:
        yield warning(
            "processes",
            f"daemon.json names pid {record.pid}, which is no daemon any more",
            "nothing: the next daemon takes its place",
        )
        return
    for path in (patient.paths.engine_record, *patient.paths.engine_records):
        engine = read_record(path, ProcessIdentity)
        if engine is not None and is_alive(engine) and not lives and patient.health is None:
            yield failed(
                "processes", f"the engine, pid {engine.pid}, outlived its daemon", f"run `kill {engine.pid}`, or `runed ensure`"
            )
            return
    yield ok("processes", f"the daemon is pid {record.pid}" if record is not None and lives else "none is left over")


def daemon(patient: Patient) -> Iterator[Finding]:
    """Check that the daemon answers, and that its model can be used."""
    hold = read_hold(patient.paths.hold)
    if patient.health is None and hold is not None:
        yield warning(
            "daemon", f"`runed stop --for` keeps it stopped until {hold.until}", "`runed ensure --anyway` starts it now"
        )
    elif patient.health is None and is_dormant(patient.paths):
        yield ok("daemon", "none runs; its service starts one with the next call")
    elif patient.health is None and find_listener(patient.paths.socket) is not None:
        remedy = "it may be starting or busy: look again in a minute; if it never answers, end it with `runed stop --force`"
        yield failed("daemon", "it listens and does not answer yet", remedy)
    elif patient.health is None:
        yield ok("daemon", "none runs; the next call starts one")
    elif patient.health.is_degraded:
        message = patient.health.message or "embeddings fail"
        what, remedy = parted(message)
        yield failed("daemon", what, remedy or remedy_of(patient, message) or "see `runed logs` and `runed logs --engine`")
    elif patient.info is not None and patient.info.daemon_version != __version__:
        version = patient.info.daemon_version
        yield warning(
            "daemon", f"it is version {version}, and this is {__version__}", "run `runed stop`; the next call starts this one"
        )
    else:
        yield ok("daemon", f"it answers: {patient.health.status.lower()}")


def installations(patient: Patient) -> Iterator[Finding]:
    """Check for several installations of runed, of which clients start now one and then another."""
    found: dict[Path, str] = {}
    own = Path(sys.executable).with_name("runed")
    places = [own, *(Path(folder) / "runed" for folder in search_path().split(os.pathsep)), patient.paths.bin / "runed"]
    if patient.settings.runed_binary:
        places.append(patient.settings.runed_binary)
    for place in places:
        if place.is_file() and os.access(place, os.X_OK) and place.resolve() not in {each.resolve() for each in found}:
            found[place] = __version__ if place == own else command_version([str(place)], timeout=_VERSION_SECONDS)
    told = ", ".join(f"{place} ({version or 'tells no version'})" for place, version in found.items())
    if len(set(found.values()) | {__version__}) > 1:
        remedy = "remove the older ones, or name the right one as runed_binary in config.json"
        yield warning("installations", f"several versions: {told}", remedy)
    elif shutil.which("runed", path=search_path()) is None and not patient.settings.runed_binary:
        yield warning(
            "installations",
            "no `runed` is on the PATH, so clients in Go and TypeScript cannot start a daemon",
            f"add {own.parent} to the PATH, or name {own} as runed_binary in config.json",
        )
    else:
        yield ok("installations", told)


def port(patient: Patient) -> Iterator[Finding]:
    """Check that the port of RUNED_HTTP is free, or the daemon's."""
    record = DaemonRecord.read(patient.paths.daemon_record) if patient.health is not None else None
    if record is not None and record.http:
        yield ok("port", f"the daemon serves {record.http}")
        return
    if patient.settings.http is None:
        yield ok("port", "none is asked for (RUNED_HTTP)")
        return
    if record is not None:
        yield warning("port", "the daemon was started without RUNED_HTTP", "run `runed stop`; the next daemon serves the port")
        return
    host, number = patient.settings.http
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, number))
        except OSError as error:
            yield failed("port", f"{host}:{number} cannot be used: {error.strerror}", _way_to_port(error, number))
            return
    yield ok("port", f"{host}:{number} is free")


def _way_to_port(error: OSError, number: int) -> str:
    """Return what to do about a port that cannot be used. The system tells this user of processes of this user alone."""
    if error.errno != errno.EADDRINUSE:
        return "choose another port above 1023, and an address of this machine, in RUNED_HTTP"
    try:
        sockets = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        sockets = []
    pid = next(
        (each.pid for each in sockets if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == number), None
    )
    owner = f"{program_title(pid) or 'its owner'} (pid {pid})" if pid else "its owner, which another user runs"
    return f"choose another port in RUNED_HTTP, or end {owner}"


def token(patient: Patient) -> Iterator[Finding]:
    """Check that the token of the port is private. What it is, is never told."""
    path = patient.paths.http_token
    record = DaemonRecord.read(patient.paths.daemon_record)
    if patient.info is not None and record is not None and record.http:
        is_open = not patient.info.needs_token  # whatever the settings of this command are
    else:
        is_open = patient.settings.http is not None and not patient.settings.http_token
    if is_open:
        yield warning(
            "token",
            "requests to the port need none (RUNED_HTTP_TOKEN=off)",
            "every user of this machine may call it; unset that, and run `runed stop`",
        )
        return
    try:
        info = path.lstat()
    except FileNotFoundError:
        yield ok("token", "none is needed yet")
        return
    if not stat.S_ISREG(info.st_mode) or not info.st_size:
        yield failed("token", f"{path} is empty, or no file", f"remove {path}, and run `runed stop`; the next daemon makes one")
    elif stat.S_IMODE(info.st_mode) & 0o077:
        remedy = f"remove {path}, and run `runed stop`; the next daemon makes another one"
        yield failed("token", f"others can read {path} (mode {mode_of(info)})", remedy)
    else:
        yield ok("token", f"{path}, mode {mode_of(info)}")
