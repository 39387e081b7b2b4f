"""Looks at the daemon of a home from outside, for callers that it does not answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from runed.errors import DaemonUnavailableError
from runed.lifecycle.listener import dial
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.peers import peer_of
from runed.processes import is_stopped


class Condition(Enum):
    """The conditions of a daemon that does not answer, each with the words that tell it."""

    ABSENT = "does not run"
    STARTING = "is starting"
    SHUTTING_DOWN = "is shutting down"
    STOPPED = "is stopped, by SIGSTOP, Ctrl-Z or a debugger"
    OVERLOADED = "is overloaded"


@dataclass(frozen=True, slots=True)
class Presence:
    """A daemon that does not answer.

    Attributes:
        paths: Its home.
        condition: Its condition.
        pid: Its process id, as the kernel told it or as its record tells it of a process that lives; None if it is not known.
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
                return f"{sentence}: it listens, but does not answer; see `runed logs`, or end it with `runed stop`"
        return sentence


def observe(paths: Paths) -> Presence:
    """Return the condition of a daemon that does not answer.

    Args:
        paths: The home.

    Raises:
        ForeignPathError: See `dial`.
    """
    record = DaemonRecord.read(paths.daemon_record)
    if record is not None and not record.is_alive():
        record = None
    pid = record.pid if record else None
    try:
        with dial(paths.socket, timeout=0) as connection:
            # A pid of 0 is that of a daemon in a pid namespace that cannot be seen from here.
            pid = peer_of(connection).pid or None
    except (BlockingIOError, TimeoutError):
        pass  # it listens, and its backlog is full
    except (DaemonUnavailableError, ConnectionResetError):
        if record is None:
            starter = LockFile(paths.spawn_lock)
            return Presence(paths, Condition.STARTING if starter.is_held() else Condition.ABSENT)
        if not record.draining:
            return Presence(paths, Condition.STOPPED if is_stopped(record.pid) else Condition.STARTING, pid)
    if pid is not None and is_stopped(pid):
        return Presence(paths, Condition.STOPPED, pid)
    draining = record is not None and record.draining
    return Presence(paths, Condition.SHUTTING_DOWN if draining else Condition.OVERLOADED, pid)
