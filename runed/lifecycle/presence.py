"""Looks at the daemon of a home from outside, for callers that it does not answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from runed.lifecycle.listener import find_listener
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.service import is_dormant
from runed.lifecycle.spawn import find_process
from runed.locking import LockFile
from runed.paths import Paths
from runed.processes import is_stopped


class Condition(Enum):
    """The conditions of a daemon that does not answer, each with the words that tell it."""

    ABSENT = "does not run"
    STARTING = "is starting"
    SHUTTING_DOWN = "is shutting down"
    STOPPED = "is stopped, by SIGSTOP, Ctrl-Z or a debugger"
    OVERLOADED = "does not answer yet"


@dataclass(frozen=True, slots=True)
class Presence:
    """A daemon that does not answer.

    Attributes:
        paths: Its home.
        condition: Its condition.
        pid: Its process id; None if it is not proved, or cannot be seen from here.
    """

    paths: Paths
    condition: Condition
    pid: int | None = None

    def __str__(self) -> str:
        """Return the sentence for people, with the remedy."""
        pid = f", pid {self.pid}," if self.pid else ""
        sentence = f"the daemon of {self.paths.home}{pid} {self.condition.value}"
        match self.condition:
            case Condition.STOPPED:
                return (
                    f"{sentence}, and answers nothing; let it go on with `kill -CONT {self.pid}`, or end it with `runed stop`"
                )
            case Condition.OVERLOADED:
                # A remedy that ends it would end a healthy job: a busy machine looks the same from outside.
                return f"{sentence}; it may be starting or busy, see `runed logs`"
        return sentence


def observe(paths: Paths) -> Presence:
    """Return the condition of a daemon that does not answer.

    Args:
        paths: The home.

    Raises:
        ForeignPathError: See `dial`.
    """
    if is_dormant(paths):  # a connection would start the daemon
        return Presence(paths, Condition.STARTING if LockFile(paths.spawn_lock).is_held() else Condition.ABSENT)
    listener = find_listener(paths.socket)
    record = DaemonRecord.read(paths.daemon_record)
    if record is not None and not record.is_alive():
        record = None
    process = find_process(paths)
    pid = process.pid if process else None
    if pid is not None and is_stopped(pid):
        condition = Condition.STOPPED
    elif record is not None and record.draining:
        condition = Condition.SHUTTING_DOWN
    elif listener is not None:
        condition = Condition.OVERLOADED
    elif record is not None or LockFile(paths.spawn_lock).is_held():
        condition = Condition.STARTING
    else:
        condition = Condition.ABSENT
    return Presence(paths, condition, pid)
