"""An archive for a report: what the checks found, settings, state and logs; without texts, keys, tokens and names of users."""

from __future__ import annotations

import getpass
import io
import json
import os
import platform
import re
import socket
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import msgspec

from runed.doctor.finding import Finding, Patient
from runed.doctor.logs import tail
from runed.errors import printable
from runed.files import write_atomically
from runed.settings import in_force, proxy_settings, secret_variable
from runed.version import __version__

_LOG_BYTES = 1024 * 1024
"""Bytes of the end of each log."""

# Repeated parts have a bound, or follow a word that is rare: otherwise a long line takes minutes.
_QUOTED = r"[\\\"']*\s*[=:]\s*[\\\"']*"
"""What is between a name and its value. Quotes in a line of the log have a backslash."""

_NAMES = r"(?:token|key|password|passwd|pwd|pass|secret|credentials?|cookie|sig|signature)"
"""The ends of names whose values are secret."""

_VALUE = r"(?:(?!\\\")[^\s\"',;])+"

_SECRET = re.compile(
    rf"(?i)((?:\b(?:bearer|authorization{_QUOTED}\w+)|--[\w-]{{0,64}}{_NAMES})(?:\s|%20)+"
    # The file http.token is no secret.
    rf"|(?<!http\.){_NAMES}{_QUOTED}){_VALUE}"
)
_COOKIES = re.compile(rf"(?i)(\bcookie{_QUOTED})[^\r\n\"]+")
"""All cookies of a header, whose names anybody chooses."""

_BARE_SECRET = re.compile(
    r"\b(?:(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{8,}|A[KS]IA[0-9A-Z]{16}|eyJ[\w-]{1,1000}\.[\w-]+\.[\w-]*)"
)
"""Secrets that tell by themselves what they are: keys of well-known services, and JSON web tokens."""

_USER_INFO = re.compile(r"(?<=://)[^/\s\"]+@|(?<![\w.@/-])[\w.%+-]+:[^\s:@/\"']+@(?=[\w.-]+:\d)")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s\"'?#\\]{1,2000})[?#][^\s\"'\\]*", re.IGNORECASE)
_HOMES = re.compile(r"(/home|/Users|/var/home|\b[A-Za-z]:\\+Users)([/\\]+)[^/\\\s\"':]+")

_SHORTEST = 3
"""Characters from which on the name of a user or machine is replaced. A shorter one stands in many words."""


def write_bundle(path: Path, patient: Patient, findings: Sequence[Finding]) -> list[str]:
    """Write the archive, a tar with gzip that only this user can read.

    The log of the engine is left out: what a foreign program writes may quote a text.

    Args:
        path: The file to write.
        patient: What was examined.
        findings: What was found.

    Returns:
        The names of the files in it.

    Raises:
        OSError: It cannot be written.
    """
    redact, buffer, names = _redactor(patient), io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in _files(patient, findings):
            data = redact(text).encode()
            info = tarfile.TarInfo(f"runed-doctor/{name}")
            info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
            archive.addfile(info, io.BytesIO(data))
            names.append(name)
    write_atomically(path, buffer.getvalue())
    return names


def _files(patient: Patient, findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    facts = {
        "runed": __version__,
        "python": sys.version,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "written_at": time.strftime("%FT%TZ", time.gmtime()),
    }
    yield "machine.json", json.dumps(facts, indent=2)
    rows = [{"check": each.check, "state": each.state.value, "detail": each.detail, "remedy": each.remedy} for each in findings]
    yield "findings.json", json.dumps(rows, indent=2)
    yield "settings.json", json.dumps([list(row) for row in in_force(patient.settings)], indent=2)
    if patient.info is not None and patient.health is not None:
        state = {"info": msgspec.to_builtins(patient.info), "health": msgspec.to_builtins(patient.health)}
        yield "state.json", json.dumps(state, indent=2)
    yield "files.txt", "\n".join(_listing(patient.paths.home))
    for log in (patient.paths.events_log, patient.paths.daemon_log):
        if lines := tail(log, _LOG_BYTES):
            yield log.name, "\n".join(line.decode(errors="replace") for line in lines)


def _listing(home: Path) -> Iterator[str]:
    """Yield the files of a home with modes and sizes."""
    for path in sorted(home.rglob("*")) if home.is_dir() else []:
        try:
            info = path.lstat()
        except OSError:
            continue
        yield f"{info.st_mode:o} {info.st_uid:>6} {info.st_size:>12} {printable(str(path.relative_to(home)))}"


class _Redactor:
    def __init__(self, secrets: Sequence[str], names: Sequence[tuple[str, str]]) -> None:
        self._secrets = {form for secret in secrets for form in _forms(secret)}
        # Beside "_", too, as in the name of a file.
        self._names = [
            (re.compile(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])"), instead)
            for name, instead in names
            for form in _forms(name)
        ]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "REDACTED")
        text = _QUERY.sub(r"\1", _USER_INFO.sub("", text))
        text = _BARE_SECRET.sub("REDACTED", _SECRET.sub(r"\1REDACTED", _COOKIES.sub(r"\1REDACTED", text)))
        text = _HOMES.sub(r"\1\2USER", text)
        for pattern, instead in self._names:
            text = pattern.sub(instead, text)
        return text


def _forms(text: str) -> set[str]:
    """Return a text as it is, and as it stands in JSON."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


def _redactor(patient: Patient) -> _Redactor:
    secrets = [secret_variable("HF_TOKEN"), secret_variable("RUNED_BACKEND_KEY")]
    remotes = [model.remote for model in patient.settings.models.values() if model.remote is not None]
    for path in (patient.paths.http_token, patient.settings.backend_key_file, *(remote.key_file for remote in remotes)):
        try:
            secrets.append(path.read_text().strip() if path else "")
        except (OSError, UnicodeDecodeError):
            continue
    secrets += [secret_variable(remote.key_variable) for remote in remotes if remote.key_variable]
    for kind in ("", "_TRACES", "_METRICS"):
        headers = secret_variable(f"OTEL_EXPORTER_OTLP{kind}_HEADERS").split(",")
        secrets += [unquote(header.partition("=")[2].strip()) for header in headers]
    for url, _ in proxy_settings().values():
        _, separator, password = url.rpartition("@")[0].rpartition("://")[2].partition(":")
        secrets += [password, unquote(password)] if separator else []
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without an entry in the user database
        user = ""
    names = [(str(Path.home()), "~"), (user, "USER"), (socket.gethostname(), "HOST")]
    # "root" is no name of a person, and a word of many messages.
    kept = [(name, instead) for name, instead in names if len(name) >= _SHORTEST and name not in {"root", "/root"}]
    return _Redactor([secret for secret in secrets if secret], kept)
