"""Checks of the machine: /proc, WSL, noexec, disk, memory, limits, clock."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from runed.doctor.finding import Finding, Patient, failed, ok, warning
from runed.os_errors import forbids_programs, mount_point, noexec
from runed.processes import identify

_LEAST_DISK = 200 * 1000**2
"""Bytes that logs, caches and half a download need."""

_INSTALLATION = 1_200 * 1000**2
"""Bytes that the default model takes while it is made from its download."""

_LEAST_MEMORY = 300 * 1000**2
"""Bytes that the smallest engine needs."""

_GROWTH = 1.3
"""Memory of an engine in multiples of its model's file."""

_FEW_FILES = 1024
"""Open files below which many clients at once do not fit."""

_FAR = re.compile(r"^(9p|drvfs|cifs|smb3?|nfs4?|fuse\.sshfs|vboxsf|fuse\.vmhgfs.*|lustre|afs)$")
"""File systems of other machines, and of Windows. Locks and sockets work on few of them."""

_REMEDIES = (
    (
        re.compile(r"^(no )?traces and metrics "),
        "mend what it names, or unset OTEL_EXPORTER_OTLP_ENDPOINT, and run `runed stop`; embeddings work without it",
    ),
    (
        re.compile(r"\(ulimit -\w\)$"),
        "raise it for your user, in /etc/security/limits.conf or in the unit of systemd, and run `runed stop`",
    ),
    (
        re.compile(r"\(cgroup /.*\)$|^\d+ of \d+ processors$"),
        "if it is not meant so, raise it in the options of the container, or in the unit or the job that starts the daemon",
    ),
    (
        re.compile(r"^(nice|the scheduling policy|the class idle|oom_score_adj) "),
        "run `runed stop`, and then `runed ensure` in a shell of ordinary priority",
    ),
)
"""What to do about the limits that a daemon tells, by their words."""

_OWN_REMEDY = "nothing has to be done: embeddings work; the sentence says what would be faster"
"""What to do about what a daemon tells of its engine. Each such sentence has the remedy in it."""

_NOT_BEFORE = 1_735_689_600
"""The beginning of 2025, in seconds since 1970. No machine with this version lives earlier."""


def proc(patient: Patient) -> Iterator[Finding]:
    """Check that /proc tells processes apart. Only Linux has it."""
    if sys.platform != "linux":
        yield ok("/proc", "this system needs none")
    elif not (patient.read("proc/self/stat") and patient.read("proc/sys/kernel/random/boot_id")):
        yield failed("/proc", "it cannot be read, and it tells processes apart", "mount it: `mount -t proc proc /proc`")
    elif patient.is_mine and identify(os.getpid()) is None:
        yield failed(
            "/proc", "it does not show this process", "mount the one of this pid namespace: `mount -t proc proc /proc`"
        )
    else:
        yield ok("/proc", "mounted")


def wsl(patient: Patient) -> Iterator[Finding]:
    """Check for WSL 1, which lacks what the daemon needs."""
    release = patient.read("proc/sys/kernel/osrelease").strip().lower()
    if "microsoft" not in release:
        yield ok("WSL", "this is not WSL")
    elif "wsl2" in release or "microsoft-standard" in release:
        yield ok("WSL", "WSL 2")
    else:
        yield failed("WSL", "this is WSL 1, whose sockets and locks differ", "convert it: `wsl --set-version DISTRO 2`")


def file_system(patient: Patient) -> Iterator[Finding]:
    """Check that the home is on a file system of this machine, which runs programs."""
    kind = _kind_of(patient)
    if _FAR.match(kind):
        yield warning(
            "file system",
            f"the home is on {kind}, where sockets and locks may not work",
            "set RUNED_HOME to a local disk; `models` in it may be a link to a shared one",
        )
    else:
        yield ok("file system", kind or "local")
    for path in (patient.place, patient.settings.llama_server):
        if path is not None and forbids_programs(path):
            yield failed("noexec", noexec(path), "set RUNED_HOME, or RUNED_LLAMA_SERVER, to a place where programs may run")
            return
    yield ok("noexec", "programs may run there")


def _kind_of(patient: Patient) -> str:
    """Return the type of the home's file system; "" if the system does not tell it."""
    best, kind = "", ""
    place = str(patient.place.resolve())
    for line in patient.read("proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) > 2:  # noqa: PLR2004 # device, directory and type
            mount = fields[1].replace("\\040", " ")
            if (place == mount or place.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
                best, kind = mount, fields[2]
    return kind


def disk(patient: Patient) -> Iterator[Finding]:
    """Check the room on the disk of the home."""
    usage, found = shutil.disk_usage(patient.place), os.statvfs(patient.place)
    mount = mount_point(patient.place)
    told = f"{usage.free / 1000**3:,.1f} GB of {usage.total / 1000**3:,.1f} GB are free at {mount}"
    remedy = (
        "make room, or set RUNED_HOME to a larger disk; `runed models` shows what takes room, and `runed rm` removes models"
    )
    if found.f_files and not found.f_favail:
        yield failed("disk", f"{told}, and it has no room for more files", remedy)
    elif usage.free < _LEAST_DISK:
        yield failed("disk", told, remedy)
    elif usage.free < _INSTALLATION and not (patient.settings.model or _has_models(patient)):
        yield warning("disk", f"{told}, and no model is installed yet, which takes up to 1.2 GB meanwhile", remedy)
    elif not os.access(patient.place, os.W_OK):
        yield failed("disk", f"{patient.place} cannot be written to", "set RUNED_HOME to a directory of yours")
    else:
        yield ok("disk", told)


def _has_models(patient: Patient) -> bool:
    return any(patient.paths.models.glob("*.gguf")) if patient.paths.models.is_dir() else False


def memory(patient: Patient) -> Iterator[Finding]:
    """Check the memory against the model."""
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    if (limit := _memory_limit(patient)) is not None:
        free, total = min(free, limit), min(total, limit)
    told = f"{free / 1000**3:,.1f} GB of {total / 1000**3:,.1f} GB are free"
    remedy = "end other programs, choose a smaller variant (`runed bench --variants`), or set RUNED_PROFILE=memory"
    runs = patient.health is not None and patient.health.engine_pid > 0
    needed = int(_model_bytes(patient) * _GROWTH)
    if free < _LEAST_MEMORY and not runs:
        yield failed("memory", told, remedy)
    elif needed > free and not runs:
        yield warning("memory", f"{told}, and the engine may need {needed / 1000**3:,.1f} GB", remedy)
    else:
        yield ok("memory", told)


def _memory_limit(patient: Patient) -> int | None:
    """Return the bytes that the control group and those above it allow, on Linux with cgroup v2."""
    group = patient.root / "sys/fs/cgroup" / patient.read("proc/self/cgroup").rpartition("0::/")[2].strip()
    limits = []
    for place in (group, *group.parents):
        try:
            limits.append(int((place / "memory.max").read_text()))
        except (OSError, ValueError):  # "max" is no number, and the topmost group has no limits
            continue
    return min(limits, default=None)


def _model_bytes(patient: Patient) -> int:
    files = [patient.settings.model] if patient.settings.model else sorted(patient.paths.models.glob("*.gguf"))
    return max((file.stat().st_size for file in files if file.is_file()), default=0)


def limits(patient: Patient) -> Iterator[Finding]:
    """Check the limits that a daemon cannot raise."""
    told: dict[str, list[str]] = {}
    for sentence in dict.fromkeys([*(patient.info.restrictions if patient.info else ()), *_hard_limits()]):
        told.setdefault(next((remedy for words, remedy in _REMEDIES if words.search(sentence)), _OWN_REMEDY), []).append(
            sentence
        )
    for remedy, sentences in told.items():
        yield warning("engine" if remedy is _OWN_REMEDY else "limits", "; ".join(sentences), remedy)
    if not told.keys() - {_OWN_REMEDY}:
        yield ok("limits", "none that matters")


def _hard_limits() -> Iterator[str]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield f"at most {files} open files (ulimit -n)"
    for name, words in (("RLIMIT_AS", "address space (ulimit -v)"), ("RLIMIT_FSIZE", "a file (ulimit -f)")):
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            yield f"at most {hard // 1024**2:,} MiB of {words}"


def clock(patient: Patient) -> Iterator[Finding]:
    """Check that the clock can be right. A wrong one breaks the certificates of downloads."""
    newest = max((path.stat().st_mtime for path in _own_files(patient)), default=0.0)
    now, remedy = patient.clock(), "set the clock: `timedatectl set-ntp true`, or `wsl --shutdown` in WSL"
    if now < _NOT_BEFORE:
        yield failed("clock", f"it says {time.strftime('%F %T UTC', time.gmtime(now))}, which is long ago", remedy)
    elif newest > now + 3600:
        yield warning(
            "clock", f"it says {time.strftime('%F %T UTC', time.gmtime(now))}, and files of the home are from later", remedy
        )
    else:
        yield ok("clock", time.strftime("%F %T UTC", time.gmtime(now)))


def _own_files(patient: Patient) -> Iterator[Path]:
    for path in (patient.paths.daemon_record, patient.paths.installed, patient.paths.events_log):
        if path.is_file():
            yield path
