"""A `runed serve` that follows the protocol of a start, or breaks it on purpose. It answers no calls.

    fake_daemon.py BEHAVIOUR VERSION serve --log-file FILE --ready-fd N
    fake_daemon.py BEHAVIOUR VERSION version

At its start it appends facts about its process to `starts.jsonl` of its home.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from runed.lifecycle.launch import READY
from runed.lifecycle.listener import Listener
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths

DRAIN = 1.0


def note_start(paths: Paths) -> None:
    start = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "directory": str(Path.cwd()),
        "environment": dict(os.environ),
        # The descriptor of the listing itself is closed again, so its link cannot be read.
        "descriptors": {link.name: str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()},
    }
    with (paths.home / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")


def serve(paths: Paths, version: str, ready_fd: int, *, drain: float, openly: bool) -> None:
    with LockFile(paths.daemon_lock) as lock:
        if not lock.try_acquire():
            sys.stderr.write(f"pid {lock.holder()} serves\n")
            return
        record = msgspec.structs.replace(DaemonRecord.of_this_process(paths.socket), version=version)
        # Before the bind: a process that can connect can also read the record.
        record.write(paths.daemon_record)
        try:
            with Listener.bind(paths.socket) as listener:
                with contextlib.suppress(KeyboardInterrupt):  # installed before a test may send the signal
                    os.write(ready_fd, READY)
                    os.close(ready_fd)
                    while True:
                        connection, _ = listener.sock.accept()
                        connection.close()
                if openly:
                    signal.signal(signal.SIGTERM, lambda *_: (paths.home / "hurried").touch())
                    record.tell_draining(paths.daemon_record)
                else:
                    listener.sock.close()
                time.sleep(drain)
        finally:
            record.remove(paths.daemon_record)


def fail(behaviour: str, log_file: Path) -> None:
    match behaviour:
        case "dies":
            sys.exit("fake: no such luck")
        case "dies after rotating its log":
            log_file.rename(log_file.with_suffix(".log.1"))
            log_file.write_text("fake: in the new log\n")
            sys.exit("fake: on standard error")
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves quietly":
            sys.exit(0)
        case "never gets ready":
            sys.stderr.write("fake: still thinking\n")
        case "never gets ready and ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case other:
            sys.exit(f"fake: no such behaviour: {other}")
    while True:
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("version")
    parser.add_argument("command")
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    if arguments.command == "version":
        sys.stdout.write(f"runed {arguments.version}\n")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    paths = Paths(Path(os.environ["RUNED_HOME"]))
    note_start(paths)
    if arguments.behaviour.startswith("serves"):
        drain = DRAIN if "drains" in arguments.behaviour else 0
        serve(paths, arguments.version, arguments.ready_fd, drain=drain, openly="openly" in arguments.behaviour)
    else:
        fail(arguments.behaviour, arguments.log_file)


main()
