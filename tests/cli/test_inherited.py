"""The daemon of a client gives up what was meant for that client alone, and tells what it cannot give up."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.support import SCRIPTS, Cli
from tests.support import wait_until
from tests.users import OTHER, needs_root, run_as

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BAD_CIRCUMSTANCES = """
import os, resource, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT})
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
os.nice(11)
open("/proc/self/oom_score_adj", "w").write("300")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for limit, low, high in (
    (resource.RLIMIT_NOFILE, 128, 900),
    (resource.RLIMIT_CORE, 2**30, 2**30),
    (resource.RLIMIT_FSIZE, 2**20, 2**40),
    (resource.RLIMIT_CPU, 1000, 1000),
    (resource.RLIMIT_STACK, 2**20, 2**26),
):
    resource.setrlimit(limit, (low, high))
"""
"""The circumstances of a job of cron with `nice`, `taskset`, `ulimit`, and signals that are blocked or ignored."""


def signals(pid: int) -> dict[str, set[int]]:
    """Return the blocked and the ignored signals of a process."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    masks = {name: int(lines[name], 16) for name in ("SigBlk", "SigIgn")}
    return {name: {number for number in range(1, 65) if mask >> (number - 1) & 1} for name, mask in masks.items()}


def test_daemon_and_engine_of_a_caller_in_bad_circumstances_serve_like_any_other(cli: Cli) -> None:
    processors, score = os.sched_getaffinity(0), Path("/proc/self/oom_score_adj").read_text()
    idle = "import psutil; psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)\n"
    caller = f"{idle}os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", BAD_CIRCUMSTANCES + caller, str(SCRIPTS / "runed"), "embed", "hello"]
    subprocess.run(argv, env=cli.environment_of_a_command(), capture_output=True, timeout=60, check=True)
    document: dict[str, Any] = json.loads(cli.run("status", "--json").stdout)
    for pid in (document["pid"], document["engine_pid"]):
        found = signals(pid)
        assert found["SigBlk"] == set()
        assert not found["SigIgn"] & {signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}
        assert os.sched_getaffinity(pid) == processors
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (900, 900)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(pid, resource.RLIMIT_STACK)[0] == 8 * 2**20
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] in {2**40, resource.RLIM_INFINITY}
        assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_NONE
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == score
        assert int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) == 0
    assert "at most 900 open files (ulimit -n)" in document["restrictions"]
    assert "limits    " in cli.run("status").stdout
    os.kill(document["pid"], signal.SIGTERM)
    wait_until(lambda: not cli.paths.socket.exists(), what="the end of the daemon")


@needs_root
def test_a_user_who_may_not_raise_limits_is_told_of_them() -> None:
    code = "from runed.daemon import inherited; inherited.reset(); print(*inherited.restrictions(), sep=chr(10))"
    done = run_as(OTHER, BAD_CIRCUMSTANCES + code)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "cgroup" not in line] == [
        "nice 11: other processes go first",
        "1,000 seconds of processor time in all (ulimit -t)",
        "files of at most 1,048,576 MiB (ulimit -f)",
        "at most 900 open files (ulimit -n)",
    ]


def test_a_daemon_in_the_foreground_keeps_what_its_service_manager_chose_but_dumps_no_core(cli: Cli) -> None:
    argv = ["nohup", "nice", "-n", "3", str(SCRIPTS / "runed"), "serve"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(argv, env=cli.environment_of_a_command(), stdin=quiet, stdout=quiet, stderr=quiet)
    wait_until(cli.paths.socket.exists, what="the daemon")
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 3
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
    assert "nice 3: other processes go first" in json.loads(cli.run("status", "--json").stdout)["restrictions"]
    process.send_signal(signal.SIGHUP)
    assert json.loads(cli.run("status", "--json").stdout)["status"] != "SHUTTING_DOWN"
    process.terminate()
    assert process.wait(30) == 0
